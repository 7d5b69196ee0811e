"""Scales of the quantised vision graph: what inputs were calibrated to, and how values become codes.

A scale brings the largest magnitude (amax) to the largest code. It is rounded to the graph's type before anything is
divided by it, so that codes and graph agree, and it is never 0, which TensorRT's parser refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from nvlm_trt.errors import EngineError, listed
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.safetensors_read import opened
from nvlm_trt.vision.dtypes import DType, Quantization, quantization

CALIBRATION = "the vision encoder's calibration"

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
    """

    kind: str
    amax: Mapping[str, float]

    @property
    def quantization(self) -> Quantization:
        """Types and granularity.

        Raises:
            RecipeError: unknown kind.
        """
        return quantization(self.kind)

    def input_scale(self, linear: str, dtype: DType) -> float:
        """The scale of a linear layer's input, a value of `dtype`.

        Raises:
            EngineError: the layer was not calibrated.
        """
        if linear not in self.amax:
            raise EngineError(f"{CALIBRATION} lacks a linear layer", seen=linear, fix="calibrate again")
        return float(scale_of(torch.tensor(self.amax[linear]), self.quantization, dtype))

    @classmethod
    def load(cls, path: Path, kind: str, config: NvlmConfig) -> Self:
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
        return cls(kind, amax)


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
