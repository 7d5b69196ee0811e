"""The linear layers and the KV cache of a quantised rank in torch, as TensorRT-LLM's classes would run them.

Deliberately independent of the code that quantises: names, shapes, packing and scales are those of TensorRT-LLM
(quantization/layers.py, models/modeling_utils.py, and for weights that the build quantises
cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp), so that a mistake made in writing cannot cancel
itself. Codes are rounded as there. Everything else is float64: sums of products of codes are exact, and others depend
so little on their order that the codes that follow are the same. So tp 1 and tp 8 agree within 1e-14; in float32 single
codes differed, which moved logits by up to a hundredth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from nvlm_trt.decoder.precision import KvCacheAlgo, QuantAlgo, Quantization
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.safetensors_read import opened, read_header

COMPUTE = torch.float64
"""What everything between two roundings is computed in."""

BLOCK_VALUES = 1 << 22
"""Values of a weight that are widened at a time: 32 MiB."""


class RankTensors:
    """The tensors of one rank's file, read and checked where they are used.

    Args:
        file: The file; it stays mapped.
        dtype: What values that are not quantised are stored in.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._file: Any = opened(file, "a rank file")
        self._names = frozenset(read_header(file, "a rank file"))

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor as it is stored.

        Args:
            name: Its name.
            *shape: The shape that it has to have.
            dtype: What it has to be stored in; the model's dtype if not given. TensorRT-LLM itself only warns.

        Raises:
            CheckpointError: it is missing, or of another shape or dtype.
        """
        tensor: torch.Tensor | None = self._file.get_tensor(name) if name in self._names else None
        wanted = dtype or self.dtype
        if tensor is None:
            raise CheckpointError("the rank's file lacks a tensor", seen=name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} has another shape", seen=list(tensor.shape), expected=list(shape))
        if tensor.dtype != wanted:
            raise CheckpointError(f"{name} has another dtype", seen=tensor.dtype, expected=wanted)
        return tensor

    def wide(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor in the model's dtype, widened."""
        return self.take(name, *shape).to(COMPUTE)

    def scales(self, name: str, *shape: int, through: torch.dtype = torch.float32) -> torch.Tensor:
        """Scales in float32, widened; `through` is the dtype that the layer casts them to before it uses them."""
        return self.take(name, *shape, dtype=torch.float32).to(through).to(COMPUTE)


class Linear(Protocol):
    """A linear layer of a rank, its bias aside."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float64 [t, in] to float64 [t, out]; where inputs are split over ranks, a partial sum."""


def linear(
    tensors: RankTensors, name: str, outputs: int, inputs: int, quantization: Quantization, *, column_blocks: int = 1
) -> Linear:
    """The linear layer of that name: what its algorithm stores, and how it computes with it.

    Args:
        tensors: The rank's file.
        name: Up to the last dot, e.g. "transformer.layers.0.attention.qkv".
        outputs: Rows of its weight on this rank.
        inputs: Columns of its weight on this rank.
        quantization: The `quantization` object of config.json.
        column_blocks: Blocks of columns with scales of their own in weights that the build quantises; 1 as on every
            real rank. With tp blocks a whole layer has the scales that the build gives to tp ranks.

    Raises:
        CheckpointError: a tensor is missing, or of another shape or dtype.
    """
    weight, activation, scales = f"{name}.weight", f"{name}.activation_scaling_factor", f"{name}.weights_scaling_factor"
    match quantization.quant_algo:
        case QuantAlgo.FP8:
            return Fp8(
                weight=tensors.take(weight, outputs, inputs, dtype=torch.float8_e4m3fn),
                activation_scale=tensors.scales(activation, 1, through=tensors.dtype),
                weight_scale=tensors.scales(scales, 1, through=tensors.dtype),
            )
        case QuantAlgo.SMOOTH_QUANT:
            return SmoothQuant(
                weight=tensors.take(weight, outputs, inputs, dtype=torch.int8),
                activation_scale=tensors.scales(activation, 1),
                weight_scales=tensors.scales(scales, outputs),
                prequant=tensors.take(f"{name}.prequant_scaling_factor", inputs),
            )
        case QuantAlgo.AWQ:
            group = quantization.group_size
            assert group is not None
            return Awq(
                packed=tensors.take(weight, outputs // 2, inputs, dtype=torch.int8),
                weight_scales=tensors.wide(scales, outputs, inputs // group),
                prequant=tensors.take(f"{name}.prequant_scaling_factor", inputs),
            )
        case QuantAlgo.INT8_WEIGHTS:
            return WeightOnly(tensors.take(weight, outputs, inputs), steps=128, column_blocks=column_blocks)
        case QuantAlgo.INT4_WEIGHTS:
            return WeightOnly(tensors.take(weight, outputs, inputs), steps=8, column_blocks=column_blocks)
        case None:
            return Plain(tensors.take(weight, outputs, inputs))


@dataclass(frozen=True, slots=True)
class Plain:
    """ColumnLinear and RowLinear: a weight [out, in] that is not quantised."""

    weight: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        return _product(x, len(self.weight), _stored(self.weight))


@dataclass(frozen=True, slots=True)
class Fp8:
    """FP8Linear and FP8RowLinear: e4m3 weight [out, in] and input, a static scale [1] each.

    Both scales are cast to the model's dtype before they are used, as the layers do without a GEMM plugin; builds of
    this project choose none for fp8 (`decoder/trtllm_build_command.py`).
    """

    weight: torch.Tensor
    activation_scale: torch.Tensor
    weight_scale: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Codes times codes, times both scales."""
        product = _product(e4m3(x / self.activation_scale), len(self.weight), _stored(self.weight))
        return product * (self.activation_scale * self.weight_scale)


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """Int8SmoothQuantLinear: int8 weight [out, in] with a scale an output, int8 input with a static scale [1].

    Attributes:
        weight: int8 [out, in].
        activation_scale: [1].
        weight_scales: [out].
        prequant: [in], what the input is multiplied by in the model's dtype before it is quantised.
    """

    weight: torch.Tensor
    activation_scale: torch.Tensor
    weight_scales: torch.Tensor
    prequant: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Codes times codes, exact, times the scales."""
        codes = int8(_prescaled(x, self.prequant) / self.activation_scale)
        product = _product(codes, len(self.weight), _stored(self.weight))
        return product * (self.activation_scale * self.weight_scales)


@dataclass(frozen=True, slots=True)
class Awq:
    """WeightOnlyGroupwiseQuantLinear: int4 weight with a scale a group of inputs; the input is not quantised.

    Attributes:
        packed: int8 [out / 2, in]: the even one of two neighbouring outputs in the low half of a byte, in two's
            complement of four bits each.
        weight_scales: [out, in / group].
        prequant: [in], what the input is multiplied by in the model's dtype.
    """

    packed: torch.Tensor
    weight_scales: torch.Tensor
    prequant: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight as it is unpacked."""
        return _product(_prescaled(x, self.prequant), len(self.weight_scales), self._rows)

    def _rows(self, rows: slice) -> torch.Tensor:
        pairs = self.packed[rows.start // 2 : rows.stop // 2].to(torch.int16)
        nibbles = torch.stack([pairs & 15, (pairs >> 4) & 15], dim=1).flatten(0, 1)
        codes = torch.where(nibbles > 7, nibbles - 16, nibbles).to(COMPUTE)
        scales = self.weight_scales[rows]
        return (codes.view(*scales.shape, -1) * scales[:, :, None]).flatten(1)


@dataclass(frozen=True, slots=True)
class WeightOnly:
    """WeightOnlyQuantLinear: a weight that trtllm-build quantises, each rank's by itself; the input is not quantised.

    Attributes:
        weight: [out, in] as stored, in the model's dtype.
        steps: A scale is an output's largest magnitude over this, 128 for int8 and 8 for int4, which the model's dtype
            holds exactly. Halves are rounded away from zero, and codes clipped at steps - 1.
        column_blocks: Blocks of columns that have scales of their own.
    """

    weight: torch.Tensor
    steps: int
    column_blocks: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight as it is after the build."""
        return _product(x, len(self.weight), self._rows)

    def _rows(self, rows: slice) -> torch.Tensor:
        weight = _stored(self.weight)(rows)
        weight = weight.view(len(weight), self.column_blocks, -1)
        scale = weight.abs().amax(dim=2, keepdim=True) / self.steps
        ratio = torch.where(scale == 0, 0.0, weight / scale)
        codes = torch.trunc(ratio + torch.copysign(torch.tensor(0.5, dtype=COMPUTE), ratio))
        codes = codes.clamp(-self.steps, self.steps - 1)
        return (codes * scale).flatten(1)


def e4m3(values: torch.Tensor) -> torch.Tensor:
    """The nearest values of float8 e4m3, halves to even, the largest one (448) for all beyond it; NaN stays."""
    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).to(values.dtype)


def int8(values: torch.Tensor) -> torch.Tensor:
    """The nearest whole numbers from -128 to 127, halves to even; NaN stays."""
    return values.round().clamp(-128, 127)


def cached(values: torch.Tensor, algo: KvCacheAlgo | None, scale: torch.Tensor | None) -> torch.Tensor:
    """Keys (after RoPE) or values as they come back from the KV cache.

    Those of the prompt too: its attention reads them from the blocks of the cache (use_paged_context_fmha), which is
    what the build asks for.

    Args:
        values: float64, any shape.
        algo: The `kv_cache_quant_algo` of config.json.
        scale: float64 [1], `attention.kv_cache_scaling_factor`; None if the cache is not quantised.
    """
    if algo is None or scale is None:
        return values
    codes = e4m3 if algo == KvCacheAlgo.FP8 else int8
    return codes(values / scale) * scale


def _prescaled(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The input times a factor each, rounded to the model's dtype before and after, as the graph multiplies."""
    return (x.to(factors.dtype) * factors).to(x.dtype)


Rows = Callable[[slice], torch.Tensor]
"""Rows of a weight as they are multiplied, float64 [rows, in]."""


def _stored(weight: torch.Tensor) -> Rows:
    return lambda rows: weight[rows].to(COMPUTE)


def _product(x: torch.Tensor, outputs: int, widened: Rows) -> torch.Tensor:
    """The input [t, in] times the transpose of a weight [outputs, in], an even number of rows at a time."""
    step = max(2, BLOCK_VALUES // x.shape[1] // 2 * 2)
    blocks = (slice(start, min(start + step, outputs)) for start in range(0, outputs, step))
    return torch.cat([x @ widened(rows).T for rows in blocks], dim=1)
