"""Scales of the quantised vision graph: what inputs were calibrated to, and how values become codes.

A scale brings the largest magnitude (amax) to the largest code. It is rounded to the graph's type before anything is
divided by it, so that codes and graph agree, and it is never 0, which TensorRT's parser refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch

from nvlm_trt.errors import EngineError, listed
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.safetensors_read import opened
from nvlm_trt.vision.dtypes import DType, Quantization, quantization

CALIBRATION = "the vision encoder's calibration"

CPU_WEIGHT_LIMIT: Final = 64.0
"""The largest int8 code of a weight on the cpu target.

A processor without 8-bit dot products (VNNI, AMX) adds two products, of an input of 8 bits and a weight each, in
16 bits that saturate: with weights up to 127 the rows of an encoder were seen five times as far from the reference.
2 x 255 x 64 fits, so that every processor computes the same. NNCF keeps weights so by default (its `overflow_fix`).
By rounding alone the miniature's rows are 1.3 times as far from the reference as with 127.
"""

VISION_LINEARS = ("attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2")
PROJECTOR_LINEARS = ("projector/fc1", "projector/fc2")


def linear_names(config: NvlmConfig) -> tuple[str, ...]:
    """The linear layers that are quantised, by their names in the graph, in the order of the forward pass."""
    layers = range(config.vision.num_layers)
    return tuple(f"vision/layer_{index:02d}/{part}" for index in layers for part in VISION_LINEARS) + PROJECTOR_LINEARS


@dataclass(frozen=True, slots=True)
class VisionScales:
    """How the linear layers are quantised.

    Attributes:
        kind: "int8" or "fp8".
        amax: The largest magnitude of each linear layer's input, by the layer's name in the graph.
        weight_limit: The largest code of a weight; None for the kind's own.
    """

    kind: str
    amax: Mapping[str, float]
    weight_limit: float | None = None

    @property
    def quantization(self) -> Quantization:
        """Types and granularity, and the limit of inputs.

        Raises:
            RecipeError: unknown kind.
        """
        return quantization(self.kind)

    @property
    def weights(self) -> Quantization:
        """The same for weights.

        Raises:
            RecipeError: unknown kind.
        """
        kind = self.quantization
        return kind if self.weight_limit is None else replace(kind, limit=self.weight_limit)

    def input_scale(self, linear: str, dtype: DType) -> float:
        """The scale of a linear layer's input, a value of `dtype`.

        Raises:
            EngineError: the layer was not calibrated.
        """
        if linear not in self.amax:
            raise EngineError(f"{CALIBRATION} lacks a linear layer", seen=linear, fix="calibrate again")
        return float(scale_of(torch.tensor(self.amax[linear]), self.quantization, dtype))

    @classmethod
    def load(cls, path: Path, kind: str, config: NvlmConfig, *, weight_limit: float | None = None) -> Self:
        """Read what `calibrate_vision` wrote; the same file serves every kind.

        Raises:
            CheckpointError: the file cannot be read.
            EngineError: it is not of this model's linear layers.
            RecipeError: unknown kind.
        """
        quantization(kind)
        amax = read_amax(path)
        expected = linear_names(config)
        faults = [f"missing: {name}" for name in expected if name not in amax]
        faults += [f"unexpected: {name}" for name in amax if name not in expected]
        faults += [f"not a magnitude: {name} {value}" for name, value in amax.items() if not 0 <= value < math.inf]
        if faults:
            raise EngineError(f"{CALIBRATION} is not of this model{listed(faults)}", seen=path, fix="calibrate again")
        return cls(kind, amax, weight_limit)


def scale_of(amax: torch.Tensor, kind: Quantization, dtype: DType) -> torch.Tensor:
    """The scales, rounded to `dtype`, that bring magnitudes up to `amax` up to the limit; 1 where that is 0."""
    scale = (amax.float() / kind.limit).to(dtype.torch)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def encode(values: torch.Tensor, scale: torch.Tensor, kind: Quantization) -> torch.Tensor:
    """Codes of values: divided by the scale, kept within the limit, rounded half to even."""
    ratio = (values.float() / scale.float()).clamp(-kind.limit, kind.limit)
    return (ratio if kind.stored.torch.is_floating_point else ratio.round()).to(kind.stored.torch)


def read_amax(path: Path) -> dict[str, float]:
    """Largest magnitudes by linear layer, as calibration writes them.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with opened(path, CALIBRATION) as file:
        return {name: float(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
