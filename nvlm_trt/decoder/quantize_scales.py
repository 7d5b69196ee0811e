"""Results of a calibration: one safetensors file a decoder layer, read and checked before anything is converted.

All tensors are float32, of the whole layer, neither sharded nor padded. `L` is qkv, dense, fc (which stands for gate as
well: both have the same input and share their scale) or proj.

    L.input_amax   [1]     largest absolute input of the linear layer, after its prequant where it has one
    L.weight_amax  [1]     fp8: largest absolute weight, over q, k and v for qkv, over fc and gate for fc
    L.prequant     [in]    int8_sq, int4_awq: the layer computes (x * prequant) @ (W / prequant)^T
    kv.amax        [1]     largest absolute key or value as it enters the cache

Only what a precision uses is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_trt.decoder.precision import Precision, QuantAlgo
from nvlm_trt.errors import CheckpointError, listed
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.safetensors_read import opened, read_header
from nvlm_trt.model.tensors import Shape

LAYER_FILE = re.compile(r"layer_\d+\.safetensors")
WHAT = "a file of calibration results"


def layer_file(index: int) -> str:
    """Name of the file of one decoder layer, by its place in the whole model."""
    return f"layer_{index:03d}.safetensors"


def needed_results(decoder: DecoderConfig, precision: Precision) -> dict[str, Shape]:
    """Names and shapes of the results that a precision takes of every layer.

    Args:
        decoder: The decoder as it is in the source.
        precision: What is converted to.
    """
    inputs = {
        "qkv": decoder.hidden_size,
        "dense": decoder.query_width,
        "fc": decoder.hidden_size,
        "proj": decoder.intermediate_size,
    }
    shapes: dict[str, Shape] = {}
    for key, width in inputs.items():
        match precision.quantization.quant_algo:
            case QuantAlgo.FP8:
                shapes |= {f"{key}.input_amax": (1,), f"{key}.weight_amax": (1,)}
            case QuantAlgo.SMOOTH_QUANT:
                shapes |= {f"{key}.input_amax": (1,), f"{key}.prequant": (width,)}
            case QuantAlgo.AWQ:
                shapes |= {f"{key}.prequant": (width,)}
    if precision.quantization.kv_cache_quant_algo is not None:
        shapes["kv.amax"] = (1,)
    return shapes


@dataclass(frozen=True, slots=True)
class LayerResults:
    """What was found for one decoder layer: its place in the whole model, and tensors by name."""

    index: int
    tensors: Mapping[str, torch.Tensor]

    @property
    def kv_amax(self) -> torch.Tensor:
        """Largest absolute key or value, float32 [1]."""
        return self.tensors["kv.amax"]

    def linear(self, key: str) -> LinearResults:
        """What was found for its linear layer `key`: qkv, dense, fc or proj."""
        return LinearResults(self.index, key, self.tensors)


@dataclass(frozen=True, slots=True)
class LinearResults:
    """What was found for one linear layer; a result that the precision doesn't take is a KeyError."""

    layer: int
    key: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def name(self) -> str:
        """What to call the linear layer in an error."""
        return f"{self.key} of layer {self.layer}"

    @property
    def input_amax(self) -> torch.Tensor:
        """Largest absolute input, after prequant, float32 [1]."""
        return self.tensors[f"{self.key}.input_amax"]

    @property
    def weight_amax(self) -> torch.Tensor:
        """Largest absolute weight, float32 [1]."""
        return self.tensors[f"{self.key}.weight_amax"]

    @property
    def prequant(self) -> torch.Tensor:
        """Factors of the inputs, float32 [in]."""
        return self.tensors[f"{self.key}.prequant"]


class CalibrationResults:
    """An opened and checked folder of results."""

    def __init__(self, folder: Path, names: Mapping[str, Shape]) -> None:
        self._folder = folder
        self._names = names

    @classmethod
    def open(cls, folder: Path, decoder: DecoderConfig, precision: Precision) -> CalibrationResults:
        """Check every value of every file that the precision takes.

        Raises:
            CheckpointError: with every fault of every file in one message.
        """
        needed = needed_results(decoder, precision)
        results = cls(folder, needed)
        files = [layer_file(index) for index in range(decoder.num_layers)]
        faults = [fault for index in range(decoder.num_layers) for fault in results._faults(index, precision)]
        present = {path.name for path in folder.glob("layer_*") if LAYER_FILE.fullmatch(path.name)}
        faults += [f"{name}: there are only {len(files)} layers" for name in sorted(present.difference(files))]
        if faults:
            raise CheckpointError(
                f"{folder.name}: {len(faults)} faults in the calibration results{listed(faults)}",
                fix="calibrate again",
            )
        return results

    def layer(self, index: int) -> LayerResults:
        """The results of one layer by its place in the whole model; reads its file."""
        with opened(self._folder / layer_file(index), WHAT) as file:
            return LayerResults(index, {name: file.get_tensor(name) for name in self._names})

    def _faults(self, index: int, precision: Precision) -> Iterator[str]:
        name = layer_file(index)
        if not (self._folder / name).is_file():
            yield f"{name}: missing"
            return
        try:
            faults = list(self._header_faults(self._folder / name))
            if not faults:
                faults = list(_value_faults(self.layer(index).tensors, precision))
        except CheckpointError as error:
            faults = [error.what]
        yield from (f"{name}: {fault}" for fault in faults)

    def _header_faults(self, file: Path) -> Iterator[str]:
        seen = read_header(file, WHAT)
        for name, shape in self._names.items():
            if name not in seen:
                yield f"missing {name} {list(shape)}"
            elif seen[name] != (shape, "F32"):
                yield f"{name} is {seen[name][1]} {list(seen[name][0])}, expected F32 {list(shape)}"


def _value_faults(tensors: Mapping[str, torch.Tensor], precision: Precision) -> Iterator[str]:
    """Values that give no scale: factors have to be positive in the dtype that they are stored in."""
    for name, values in tensors.items():
        if name.endswith(".prequant"):
            stored = values.to(precision.dtype.torch)
            bad, expected = ~(stored.isfinite() & (stored > 0)), f"factors above 0 that fit {precision.dtype.name}"
        else:
            bad, expected = ~(values.isfinite() & (values >= 0)), "a finite number from 0 up"
        if bool(bad.any()):
            yield f"{name} holds {float(values[bad][0]):g}, expected {expected}"
