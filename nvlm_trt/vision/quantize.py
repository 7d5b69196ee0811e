"""Calibrate the vision encoder: measure the inputs of its linear layers on images.

The largest magnitude is kept: NVIDIA's FP8 ViT recipes calibrate so, on images (Model-Optimizer pull requests 1569 and
2083).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from nvlm_trt.calibration.device import give_back_memory
from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.layer_stream import checkpoint_key, newest_generation
from nvlm_trt.model.reference.vision_stream import Tiles, digest_of, stream_vision
from nvlm_trt.model.safetensors_read import opened
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec
from nvlm_trt.progress import Progress
from nvlm_trt.vision.scales import CALIBRATION, VISION_LINEARS, linear_names, read_amax


def calibrate_vision(
    checkpoint: Checkpoint,
    tiles: Tiles,
    out: Path,
    *,
    work_dir: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Measure the inputs of the linear layers on tiles, block by block, in the released bf16 arithmetic.

    Memory is that of one ViT block and one tile. A run that was killed goes on after the last finished block,
    and begins again where not all that it had seen is in `work_dir`.

    Args:
        checkpoint: An opened checkpoint.
        tiles: Of images like those to be served; thumbnails are tiles too. They are read three times.
        out: A safetensors file: by each linear layer's name in the graph, its input's largest magnitude, a float32
            scalar. A JSON file beside it tells what was measured on.
        work_dir: A folder which only this run uses, for what `stream_vision` keeps; remove it afterwards.
        device: Where the blocks are run.
        progress: Told bytes of weights that all tiles have passed, and in all.

    Raises:
        RecipeError: there are no tiles.
        CheckpointError: an input is not finite, or the checkpoint cannot be read.
    """
    if not len(tiles):
        raise RecipeError(
            "the vision encoder is calibrated on images; there are no tiles", seen=0, expected="1 or more"
        )
    digest = digest_of(tiles)
    work_dir.mkdir(parents=True, exist_ok=True)
    linears = linear_names(checkpoint.config)
    seen = _Gathered(work_dir, f"{digest} {device} {checkpoint_key(checkpoint)}", linears)
    stream_vision(
        checkpoint,
        tiles,
        work_dir=seen.states,
        dtype=torch.bfloat16,
        device=device,
        observe=seen.observe,
        finished=lambda _: seen.save(),
        progress=progress,
    )
    give_back_memory(torch.device(device))
    description = {"format": 1, "tiles": len(tiles), "tile_size": checkpoint.config.tile_size, "tiles_sha256": digest}
    out.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    save_file({name: torch.tensor(seen.amax[name]) for name in linears}, out)


class _Gathered:
    """What the finished blocks have shown, safe on disk, and of what run."""

    def __init__(self, folder: Path, key: str, linears: Sequence[str]) -> None:
        self.states = folder / "states"
        self._path = folder / "amax.safetensors"
        self._key = hashlib.sha256(key.encode()).hexdigest()
        self.amax = self._kept()
        shown = linears[: newest_generation(self.states) * len(VISION_LINEARS)]
        if not self.amax or not self.amax.keys() >= set(shown):  # finished blocks of which not all was kept
            self.amax = {}
            shutil.rmtree(self.states, ignore_errors=True)

    def observe(self, linear: str, x: torch.Tensor) -> None:
        largest = float(x.abs().amax())
        if not math.isfinite(largest):
            raise CheckpointError("the input of a linear layer is not finite", seen=f"{linear}: {largest}")
        self.amax[linear] = max(largest, self.amax.get(linear, 0.0))

    def save(self) -> None:
        beside = self._path.with_suffix(".tmp")
        specs = [TensorSpec(name, "F32", ()) for name in self.amax]
        with SafetensorsStream(beside, specs, {"key": self._key}) as stream:
            for name, value in self.amax.items():
                stream.write(name, torch.tensor(value))
        beside.replace(self._path)

    def _kept(self) -> dict[str, float]:
        """What an earlier process of this run has saved; nothing where that cannot be read."""
        try:
            with opened(self._path, CALIBRATION) as file:
                same = (file.metadata() or {}).get("key") == self._key
            return read_amax(self._path) if same else {}
        except CheckpointError:
            return {}
