"""The results of a calibration as files: one a layer, and config.json.

They are laid out as nvlm_trt.decoder.quantize_scales reads them, whatever the precision with `L.input_amax` of every
linear layer and `kv.amax`. Each layer's header also tells what the search found; config.json repeats it for people.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from nvlm_trt.decoder.quantize_scales import WHAT, layer_file
from nvlm_trt.model.safetensors_read import opened
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec

CONFIG_NAME = "config.json"
SEARCH_KEY = "search"
"""Key of the report in the `__metadata__` of a layer's header."""

Report = dict[str, dict[str, float]]
"""What a search found: `alpha`, `error` and `error_at_zero` by linear layer; empty where nothing is searched."""


def write_results(path: Path, tensors: Mapping[str, torch.Tensor], report: Report) -> None:
    """Write the results of one layer, in float32, whole or not at all.

    Args:
        path: The file.
        tensors: Results by name.
        report: What the search found.
    """
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    beside = path.with_name(f".{path.name}.tmp")
    with SafetensorsStream(beside, specs, {"format": "pt", SEARCH_KEY: json.dumps(report)}) as stream:
        for name, tensor in tensors.items():
            stream.write(name, tensor.float().cpu())
    beside.replace(path)


def publish(work_dir: Path, out_dir: Path, layers: int, record: Mapping[str, object]) -> None:
    """Copy the files of all layers to `out_dir`, in place of earlier ones, and write config.json last.

    Args:
        work_dir: Where the files of all layers are.
        out_dir: Made if it is missing; incomplete as long as it has no config.json.
        layers: How many there are.
        record: The first members of config.json; `layers`, a list of reports, follows them.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / CONFIG_NAME).unlink(missing_ok=True)
    for earlier in out_dir.glob("layer_*.safetensors"):
        earlier.unlink()
    found = []
    for index in range(layers):
        shutil.copyfile(work_dir / layer_file(index), out_dir / layer_file(index))
        with opened(out_dir / layer_file(index), WHAT) as file:
            found.append(json.loads(file.metadata()[SEARCH_KEY]))
    beside = out_dir / f".{CONFIG_NAME}.tmp"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({**record, "layers": found}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(out_dir / CONFIG_NAME)
