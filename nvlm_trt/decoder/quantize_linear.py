"""One linear layer of all ranks of a pipeline stage, quantised while the rows of its weight go by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping

import torch
from torch.nn import functional

from nvlm_trt.decoder.precision import ACTIVATION_SCALE, PREQUANT, WEIGHT_SCALE, Precision, QuantAlgo
from nvlm_trt.decoder.quantize import (
    FP8_MAX,
    INT8_MAX,
    fp8_codes,
    int4_codes,
    int8_codes,
    packed_int4,
    scale_of,
)
from nvlm_trt.decoder.quantize_scales import LinearResults
from nvlm_trt.errors import CheckpointError

Inputs = tuple[int, int]
"""[first, last) of the inputs of a linear layer that a rank holds, padding counted."""

ROUNDING_SLACK = 1.01
"""How far a weight may exceed its calibrated maximum: what rounding to the model's dtype explains, and no more."""


class LinearQuantizer(ABC):
    """Takes rows of a weight and gives codes; knows the scales when all rows have gone by."""

    @abstractmethod
    def codes(self, rows: torch.Tensor, ranks: Mapping[int, Inputs]) -> dict[int, torch.Tensor]:
        """Codes of the next rows, for every rank that holds them.

        Args:
            rows: Values in the model's dtype, [rows, inputs without padding].
            ranks: Which inputs each of these ranks holds.

        Returns:
            Rows of the weight as it is stored.

        Raises:
            CheckpointError: a value is not finite, or beyond what the calibration saw.
        """

    @abstractmethod
    def scales(self, rank: int, inputs: Inputs) -> dict[str, torch.Tensor]:
        """What is stored beside the weight of a rank, by the ends of the names."""


def linear_quantizer(precision: Precision, results: LinearResults, *, outputs: int, inputs: int) -> LinearQuantizer:
    """The quantiser of one linear layer.

    Args:
        precision: One that quantises weights.
        results: What the calibration found for the layer.
        outputs: Rows of the weight on one rank.
        inputs: Columns of the whole weight, padding counted.
    """
    match precision.quantization.quant_algo:
        case QuantAlgo.FP8:
            return Fp8Quantizer(results, inputs)
        case QuantAlgo.SMOOTH_QUANT:
            return SmoothQuantizer(results, outputs, inputs, precision.dtype.torch)
        case QuantAlgo.AWQ:
            return AwqQuantizer(results, outputs, inputs, precision.dtype.torch, precision.group_size)
        case algo:
            raise ValueError(f"{algo} does not quantise weights here")


class Fp8Quantizer(LinearQuantizer):
    """One scale for the whole weight, so that it is the same on every rank, and one for the input.

    Both are written in float32 as Model Optimizer writes them, though the engine does not use them so: it rounds one of
    them to the model's dtype (tensorrt_llm/quantization/layers.py, FP8Linear and FP8RowLinear). TensorRT's own matrix
    product dequantises the weight with its rounded scale; the input is quantised and dequantised with the same rounded
    one, which cancels. The GEMM plugin for fp8 multiplies by the exact product of both, but takes an input that was
    quantised with the rounded scale. So either way a layer's output is multiplied by something within 0.34 % of 1 in
    bfloat16 (0.17 % root mean square over all maxima that bfloat16 holds; at most 0.04 % in float16), where e4m3 itself
    costs 4 % of a random layer's output. Neither way is better, and scales of fewer bits would not be those of NVIDIA's
    converter.
    """

    def __init__(self, results: LinearResults, inputs: int) -> None:
        self._name, self._inputs = results.name, inputs
        self._most = float(results.weight_amax) * ROUNDING_SLACK
        self._weight_scale = scale_of(results.weight_amax, FP8_MAX)
        self._input_scale = scale_of(results.input_amax, FP8_MAX)

    def codes(self, rows: torch.Tensor, ranks: Mapping[int, Inputs]) -> dict[int, torch.Tensor]:
        """float8_e4m3fn [rows, inputs of the rank]."""
        low, high = torch.aminmax(rows)
        largest = max(-float(low), float(high))
        if not largest <= self._most:
            raise CheckpointError(
                "a weight is larger than the calibration says",
                seen=f"{largest:g} in {self._name}",
                expected=f"at most {self._most:g}",
                fix="calibrate on this checkpoint",
            )
        codes = fp8_codes(_padded(rows, self._inputs), self._weight_scale)
        return {rank: codes[:, slice(*columns)] for rank, columns in ranks.items()}

    def scales(self, rank: int, inputs: Inputs) -> dict[str, torch.Tensor]:
        """float32 [1] each."""
        return {ACTIVATION_SCALE: self._input_scale, WEIGHT_SCALE: self._weight_scale}


class _Smoothed(LinearQuantizer):
    """A weight that is divided by factors that the input is multiplied by (`prequant`); padding has the factor 1."""

    def __init__(self, results: LinearResults, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        self._outputs = outputs
        self._name = results.name
        factors = results.prequant.to(dtype)
        self._prequant = functional.pad(factors, (0, inputs - len(factors)), value=1.0)
        self._scales: dict[int, torch.Tensor] = {}
        self._rows: Counter[int] = Counter()

    def _smoothed(self, rows: torch.Tensor) -> torch.Tensor:
        weight = _padded(rows, len(self._prequant))
        weight /= self._prequant.float()
        return weight

    def _keep(self, rank: int, scales: torch.Tensor) -> None:
        if not bool(scales.isfinite().all()):
            raise CheckpointError("a weight is not finite, or too large for a scale", seen=self._name)
        if rank not in self._scales:  # whole at once: many small tensors between blocks would fragment the heap
            self._scales[rank] = torch.empty((self._outputs, *scales.shape[1:]), dtype=scales.dtype)
        row = self._rows[rank]
        self._scales[rank][row : row + len(scales)] = scales
        self._rows[rank] += len(scales)


class SmoothQuantizer(_Smoothed):
    """int8 with one scale an output, of whole rows, so that it is the same on every rank, and one for the input."""

    def __init__(self, results: LinearResults, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__(results, outputs, inputs, dtype)
        self._input_scale = scale_of(results.input_amax, INT8_MAX)

    def codes(self, rows: torch.Tensor, ranks: Mapping[int, Inputs]) -> dict[int, torch.Tensor]:
        """int8 [rows, inputs of the rank]."""
        codes, scales = int8_codes(self._smoothed(rows))
        for rank in ranks:
            self._keep(rank, scales)
        return {rank: codes[:, slice(*columns)] for rank, columns in ranks.items()}

    def scales(self, rank: int, inputs: Inputs) -> dict[str, torch.Tensor]:
        """float32 [1] for the input, float32 [out] for the weight, [inputs of the rank] of factors."""
        return {
            ACTIVATION_SCALE: self._input_scale,
            WEIGHT_SCALE: self._scales[rank],
            PREQUANT: self._prequant[slice(*inputs)],
        }


class AwqQuantizer(_Smoothed):
    """int4, two outputs in a byte, with one scale a group of inputs; groups never straddle ranks."""

    def __init__(self, results: LinearResults, outputs: int, inputs: int, dtype: torch.dtype, group_size: int) -> None:
        super().__init__(results, outputs, inputs, dtype)
        self._dtype, self._group_size = dtype, group_size
        self._odd = torch.empty((0, inputs), dtype=torch.int8)

    def codes(self, rows: torch.Tensor, ranks: Mapping[int, Inputs]) -> dict[int, torch.Tensor]:
        """int8 [rows / 2, inputs of the rank]; an odd row waits for the next one."""
        codes, scales = int4_codes(self._smoothed(rows), self._group_size, self._dtype)
        for rank, (first, last) in ranks.items():
            self._keep(rank, scales[:, first // self._group_size : last // self._group_size])
        codes = torch.cat([self._odd, codes])
        even = len(codes) // 2 * 2
        self._odd = codes[even:]
        packed = packed_int4(codes[:even])
        return {rank: packed[:, slice(*columns)] for rank, columns in ranks.items()}

    def scales(self, rank: int, inputs: Inputs) -> dict[str, torch.Tensor]:
        """[out, inputs of the rank / group_size] of scales, [inputs of the rank] of factors, in the model's dtype."""
        return {WEIGHT_SCALE: self._scales[rank], PREQUANT: self._prequant[slice(*inputs)]}


def _padded(rows: torch.Tensor, inputs: int) -> torch.Tensor:
    """A float32 copy with columns of zeros up to all inputs."""
    missing = inputs - rows.shape[1]
    return (functional.pad(rows, (0, missing)) if missing else rows).to(torch.float32, copy=True)
