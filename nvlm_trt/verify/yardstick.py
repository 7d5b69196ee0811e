"""The decoder reference in a reduced precision of the cpu target: how far rounding alone moves the result.

Weights are rounded as the engine stores them; activations are of the type that the cpu target computes in: bfloat16 for
bf16, float32 for 8-bit and 4-bit weights; for int8 the inputs of matrices are rounded to 8 bits, and the rest is
bfloat16. What is left between such a reference and an engine is the order of rounding, so their distances from the
fp32 reference are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from torch.overrides import TorchFunctionMode

from nvlm_trt.decoder.graph_constants import STORAGE, quantize_groups, quantize_rows
from nvlm_trt.decoder.session_cpu import INPUT_GROUP
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, Table
from nvlm_trt.model.tensors import DECODER_EMBEDDING, DECODER_HEAD, decoder_layer
from nvlm_trt.verify.fake_quant import Roundings


def reduced_decoder(checkpoint: Checkpoint, precision: str, exclude: Collection[int] = ()) -> DecoderReference | None:
    """The decoder reference in `precision`; None for fp32, which is the reference itself.

    Args:
        checkpoint: The source.
        precision: Of the engine.
        exclude: Layers that stay bf16 where weights are quantised.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return DecoderReference(checkpoint, torch.bfloat16)
    stored = _StoredCheckpoint(checkpoint, precision, exclude)
    return _RoundedInputs(stored, exclude) if precision == "int8" else DecoderReference(stored, torch.float32)


def layer_roundings(precision: str) -> Roundings | None:
    """What a precision does to a layer by itself; None where nothing is quantised."""
    stored = STORAGE[precision].layers
    if stored in ("fp32", "bf16"):
        return None
    inputs = _input_codes if precision == "int8" else _as_it_is
    return Roundings(lambda weight: _rounded(weight, stored), inputs, _as_it_is)


class _StoredCheckpoint(Checkpoint):
    """A checkpoint whose matrices were rounded to what an engine stores.

    Rows of the embedding are looked up, not multiplied: an engine with quantised weights keeps them in bfloat16.
    """

    def __init__(self, checkpoint: Checkpoint, precision: str, exclude: Collection[int]) -> None:
        super().__init__(checkpoint.path, checkpoint.config, checkpoint.tensors)
        self._storage = STORAGE[precision]
        self._kept = tuple(decoder_layer(layer) for layer in exclude)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, rounded, then cast to `dtype` if given."""
        tensor = super().read(name)
        if tensor.ndim == 2 and name != DECODER_EMBEDDING and not name.startswith(self._kept):
            tensor = _rounded(tensor, self._storage.output if name == DECODER_HEAD else self._storage.layers)
        return tensor if dtype is None else tensor.to(dtype)


class _RoundedInputs(DecoderReference):
    """The reference in bfloat16, its stored codes multiplied by inputs in 8 bits, but for those of some layers."""

    def __init__(self, checkpoint: Checkpoint, exclude: Collection[int]) -> None:
        super().__init__(checkpoint, torch.bfloat16)
        kept = tuple(decoder_layer(layer) for layer in exclude)
        for name, weight in self._weights.items():
            if weight.ndim == 2 and name != DECODER_EMBEDDING and not name.startswith(kept):
                self._weights[name] = checkpoint.read(name, torch.float32)  # codes and scales: bfloat16 would round
        self._products = _RoundedProducts()

    def logits(self, ids: Ids, table: Table = None) -> torch.Tensor:
        """As the reference's."""
        with self._products:
            return super().logits(ids, table)


class _RoundedProducts(TorchFunctionMode):
    """Products with float32 weights round their bfloat16 inputs to 8 bits, and their sums to bfloat16."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and args[1].dtype is torch.float32:
            inputs, weight, *bias = args
            return func(_input_codes(inputs.float()), weight, *(each.float() for each in bias)).to(inputs.dtype)
        return func(*args, **(kwargs or {}))


def _rounded(weight: torch.Tensor, stored: str) -> torch.Tensor:
    """A matrix [out, in] through its codes and back, float32."""
    codes, scale = (quantize_groups if stored == "int4_wo" else quantize_rows)(weight)
    return (codes.to(torch.float32) * scale).reshape(weight.shape)


def _input_codes(inputs: torch.Tensor) -> torch.Tensor:
    """Each token's values in 8 bits and back, with a scale for every `INPUT_GROUP`; the last group may be short.

    Tokens of fewer values than a group are left as they are, as OpenVINO leaves them.
    """
    width = inputs.shape[-1]
    if width < INPUT_GROUP:
        return inputs
    codes, scale = quantize_rows(F.pad(inputs, (0, -width % INPUT_GROUP)).reshape(-1, INPUT_GROUP))
    return (codes * scale).reshape(*inputs.shape[:-1], -1)[..., :width]


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values
