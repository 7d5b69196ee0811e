"""The decoder reference in a reduced precision: how far rounding alone moves the result.

Weights are rounded as the engine stores them; activations are of the type that the cpu target computes in: bfloat16 for
bf16, float32 for int8_wo. What is left between such a reference and an engine is the order of rounding, so their
distances from the fp32 reference are alike.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from nvlm_trt.decoder.graph_constants import quantize_rows
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.tensors import decoder_layer
from nvlm_trt.verify.fake_quant import FakeQuantized

EMBEDDING = "embed_tokens.weight"
"""Rows are looked up, not multiplied: an int8 engine keeps them in bfloat16."""


def reduced_decoder(checkpoint: Checkpoint, precision: str, exclude: Collection[int] = ()) -> DecoderReference | None:
    """The decoder reference in `precision`; None for fp32, which is the reference itself.

    Args:
        checkpoint: The source.
        precision: Of the engine.
        exclude: Layers whose weights int8_wo leaves alone.
    """
    if precision == "fp32":
        return None
    if precision == "int8_wo":
        return DecoderReference(_Int8Checkpoint(checkpoint, exclude), torch.float32)
    if precision == "bf16":
        return DecoderReference(checkpoint, torch.bfloat16)
    return FakeQuantized(checkpoint, decoder_precision(precision))


class _Int8Checkpoint(Checkpoint):
    """A checkpoint whose matrices were rounded to 8 bits with a scale per row, those of some layers left out."""

    def __init__(self, checkpoint: Checkpoint, exclude: Collection[int]) -> None:
        super().__init__(checkpoint.path, checkpoint.config, checkpoint.tensors)
        self._kept = tuple(decoder_layer(layer) for layer in exclude)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, rounded, then cast to `dtype` if given."""
        tensor = super().read(name)
        if tensor.ndim == 2 and not name.endswith(EMBEDDING) and not name.startswith(self._kept):
            rows, scale = quantize_rows(tensor)
            tensor = rows.to(torch.float32) * scale
        return tensor if dtype is None else tensor.to(dtype)
