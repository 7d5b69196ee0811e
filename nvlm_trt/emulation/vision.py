"""Vision encoder and projector in the arithmetic of a precision, in torch: what its rounding alone does to the rows.

fp8 and int8 round as the ONNX graph does (nvlm_trt/vision/graph.py): weights and calibrated inputs of the linear
layers, everything else in bfloat16. What a runtime makes of the graph is not emulated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import Observe, VisionReference
from nvlm_trt.model.reference.vision_stream import stream_vision
from nvlm_trt.model.tensors import PROJECTOR_PREFIX, vision_layer
from nvlm_trt.vision.dtypes import BF16
from nvlm_trt.vision.scales import VisionScales, encode, linear_names, scale_of

Floats = npt.NDArray[np.float32]
Tiles = npt.NDArray[np.uint8]

WEIGHTS = {
    "attention/qkv": "attn.qkv.weight",
    "attention/proj": "attn.proj.weight",
    "mlp/fc1": "mlp.fc1.weight",
    "mlp/fc2": "mlp.fc2.weight",
    "projector/fc1": f"{PROJECTOR_PREFIX}1.weight",
    "projector/fc2": f"{PROJECTOR_PREFIX}3.weight",
}
"""Weights of the linear layers by their names in the graph, of a block without its place."""


class VisionArithmetic:
    """The checkpoint's vision encoder in one precision.

    Args:
        checkpoint: The source.
        precision: "fp32", the reference itself; "bf16", as released; "fp8" or "int8".
        calibration: What the stage vision-calibrate leaves; fp8 and int8 alone look at it.
        linears: Names in the graph of the only linear layers that are quantised; None for all.
        weight_limit: The largest code of a weight; None for the precision's own.

    Raises:
        CheckpointError: the calibration cannot be read.
        EngineError: it is not of this model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str,
        calibration: Path | None = None,
        *,
        linears: Collection[str] | None = None,
        weight_limit: float | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._observe: Observe | None = None
        if precision in ("fp8", "int8"):
            assert calibration is not None
            scales = VisionScales.load(calibration, precision, checkpoint.config, weight_limit=weight_limit)
            chosen = frozenset(linear_names(checkpoint.config) if linears is None else linears)
            self._checkpoint = _QuantisedWeights(checkpoint, scales, {weight_of(name) for name in chosen})
            self._observe = _rounds_inputs(scales, chosen)

    def tables(self, blocks: Sequence[Tiles]) -> list[Floats | None]:
        """Prompt tables with the memory of one ViT block.

        Args:
            blocks: The tiles of each request, uint8 [n, s, s, 3]; n may be 0.

        Returns:
            float32 [n * tokens_per_tile, hidden] of each request; None where n is 0.
        """
        tiles = np.concatenate(blocks)
        if not len(tiles):
            return [None] * len(blocks)
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-vision-") as folder:
            rows = stream_vision(
                self._checkpoint,
                tiles,
                work_dir=Path(folder),
                dtype=self._dtype,
                observe=self._observe,
            )
            parts = torch.split(rows.float().clone(), [len(block) for block in blocks])
        return [part.flatten(0, 1).numpy() if len(part) else None for part in parts]

    def encoder(self) -> Callable[[Tiles], torch.Tensor]:
        """The same with all weights in memory: tiles to rows [n, tokens_per_tile, hidden], as often as wanted."""
        return VisionReference(self._checkpoint, self._dtype, observe=self._observe)


def weight_of(linear: str) -> str:
    """The checkpoint's name of the weight of a linear layer, from its name in the graph."""
    if linear in WEIGHTS:
        return WEIGHTS[linear]
    _, block, part = linear.split("/", 2)
    return f"{vision_layer(int(block.removeprefix('layer_')))}{WEIGHTS[part]}"


class _QuantisedWeights(Checkpoint):
    """A checkpoint whose named weights went through codes and back."""

    def __init__(self, checkpoint: Checkpoint, scales: VisionScales, names: Collection[str]) -> None:
        super().__init__(checkpoint.path, checkpoint.config, checkpoint.tensors)
        self._scales, self._names = scales, names

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, quantised if it is one of those, then cast to `dtype` if given."""
        tensor = super().read(name)
        if name in self._names:
            kind = self._scales.weights
            rows = tensor.abs().float()
            scale = scale_of(rows.amax(dim=1, keepdim=True) if kind.per_row else rows.amax(), kind, BF16)
            tensor = encode(tensor, scale, kind).float() * scale.float()
        return tensor if dtype is None else tensor.to(dtype)


def _rounds_inputs(scales: VisionScales, linears: Collection[str]) -> Observe:
    """Shown the input of a linear layer right before it is multiplied: rounds it where it lies."""

    def round_input(linear: str, x: torch.Tensor) -> None:
        if linear in linears:
            scale = torch.tensor(scales.input_scale(linear, BF16))
            x.copy_(encode(x, scale, scales.quantization).float() * scale)

    return round_input
