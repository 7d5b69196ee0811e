"""The decoder reference rounded to a quantised precision, weights, inputs and KV cache: how far rounding alone goes.

It knows nothing of TensorRT-LLM: weights are whole, every scale is found from the values that it is for (an input's
from all tokens of the prompt), and rounded values are multiplied as they are. A quantised checkpoint with good scales
is about as far from the unquantised decoder as this; one with a defect is many times further.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from torch.overrides import TorchFunctionMode

from nvlm_trt.decoder.precision import KvCacheAlgo, Precision, QuantAlgo
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, KvCache, Table
from nvlm_trt.model.tensors import decoder_layer

Rounding = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Roundings:
    """What a precision does to float32 weights [out, in] and inputs [t, in] of linear layers, and to keys and values.

    Keys and values come stacked: they share a scale.
    """

    weights: Rounding
    inputs: Rounding
    cache: Rounding

    @classmethod
    def of(cls, precision: Precision) -> Roundings:
        """Those of a precision."""
        return cls(_weights(precision), _inputs(precision), _cache(precision))


def _weights(precision: Precision) -> Rounding:
    match precision.quantization.quant_algo:
        case QuantAlgo.FP8:
            return _to_e4m3
        case QuantAlgo.SMOOTH_QUANT | QuantAlgo.INT8_WEIGHTS:
            return lambda weight: _to_whole(weight, 127, dim=1)
        case QuantAlgo.INT4_WEIGHTS:
            return lambda weight: _to_whole(weight, 7, dim=1)
        case QuantAlgo.AWQ:
            return lambda weight: _grouped(weight, precision.group_size)
        case None:
            return _as_it_is


def _inputs(precision: Precision) -> Rounding:
    match precision.quantization.quant_algo:
        case QuantAlgo.FP8:
            return _to_e4m3
        case QuantAlgo.SMOOTH_QUANT:
            return lambda x: _to_whole(x, 127)
        case _:
            return _as_it_is


def _cache(precision: Precision) -> Rounding:
    match precision.quantization.kv_cache_quant_algo:
        case KvCacheAlgo.FP8:
            return _to_e4m3
        case KvCacheAlgo.INT8:
            return lambda values: _to_whole(values, 127)
        case None:
            return _as_it_is


QUANTISED = tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "o", "gate", "up", "down"))
"""Ends of the names of the weights that are quantised."""


class RoundedCheckpoint(Checkpoint):
    """The source as a converter stores it: values rounded to the model's dtype, and then weights to the precision."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, rounding: Rounding | None = None) -> None:
        super().__init__(checkpoint.path, checkpoint.config, checkpoint.tensors)
        self._dtype, self._rounding = dtype, rounding

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, rounded, then widened to `dtype` if given."""
        tensor = super().read(name, self._dtype)
        if self._rounding is not None and name.endswith(QUANTISED):
            tensor = self._rounding(tensor.float())
        return tensor if dtype is None else tensor.to(dtype)


class FakeQuantized(DecoderReference):
    """The reference in a quantised precision; float32 between the roundings.

    Args:
        checkpoint: The source.
        precision: How values are stored.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        roundings = Roundings.of(precision)
        super().__init__(RoundedCheckpoint(checkpoint, precision.dtype.torch, roundings.weights))
        self._cache = roundings.cache
        quantised = {id(weight) for name, weight in self._weights.items() if name.endswith(QUANTISED)}
        self._inputs = RoundedInputs(quantised, roundings.inputs)

    def logits(self, ids: Ids, table: Table = None) -> torch.Tensor:
        """As the reference's."""
        with torch.inference_mode(), self._inputs:
            return self._head(self._forward(self.embed(ids, table), _RoundedCache(self._cache)))


class OneLayerQuantized(DecoderReference):
    """The float32 reference with one layer quantised, all others left alone; weights are shared with the reference.

    Args:
        reference: The reference in float32.
        roundings: Those of the precision.
        layer: Which one.
    """

    def __init__(self, reference: DecoderReference, roundings: Roundings, layer: int) -> None:
        self.config, self.dtype = reference.config, reference.dtype
        own = [
            name for name in reference._weights if name.startswith(decoder_layer(layer)) and name.endswith(QUANTISED)
        ]
        rounded = {name: roundings.weights(reference._weights[name]) for name in own}
        self._weights = {**reference._weights, **rounded}
        self._cache_rounding, self._layer = roundings.cache, layer
        self._inputs = RoundedInputs({id(weight) for weight in rounded.values()}, roundings.inputs)

    def logits(self, ids: Ids, table: Table = None) -> torch.Tensor:
        """As the reference's."""
        with torch.inference_mode(), self._inputs:
            cache = _RoundedCache(self._cache_rounding, self._layer)
            return self._head(self._forward(self.embed(ids, table), cache))


class RoundedInputs(TorchFunctionMode):
    """Rounds the input of every F.linear whose weight is one of these."""

    def __init__(self, weights: set[int], rounding: Rounding) -> None:
        super().__init__()
        self._weights, self._rounding = weights, rounding

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and id(args[1]) in self._weights:
            args = (self._rounding(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


class _RoundedCache(KvCache):
    """A cache that rounds what is put into it, keys and values of a layer with one scale, of all layers or of one."""

    def __init__(self, rounding: Rounding, only: int | None = None) -> None:
        super().__init__()
        self._rounding, self._only = rounding, only

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._only in (None, layer):
            k, v = self._rounding(torch.stack([k, v]))
        return super().extend(layer, k, v)


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values


def _to_e4m3(values: torch.Tensor) -> torch.Tensor:
    scale = (values.abs().amax() / 448).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def _to_whole(values: torch.Tensor, largest: int, dim: int | None = None) -> torch.Tensor:
    """Whole multiples of a step that is as fine as the largest magnitude (along `dim` if given) allows."""
    step = (values.abs().amax() if dim is None else values.abs().amax(dim, keepdim=True)) / largest
    return (values / step.clamp(min=torch.finfo(values.dtype).tiny)).round() * step


def _grouped(weight: torch.Tensor, size: int) -> torch.Tensor:
    """4 bits with a step for each group of inputs; the last group may be short."""
    padded = F.pad(weight, (0, -weight.shape[1] % size))
    groups = padded.view(len(weight), -1, size)
    return _to_whole(groups, 7, dim=2).flatten(1)[:, : weight.shape[1]]
