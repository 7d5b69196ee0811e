"""Search for the factors that inputs of a linear layer are multiplied by before they, or the weights, are quantised.

A linear layer computes ``(x * prequant) @ (W / prequant)^T``. The strength alpha of the factors is chosen on a grid:
the one whose quantised output is nearest to the exact one, in squares over the kept rows and all outputs. Factors are
used as they will be stored, rounded to bfloat16, and weights are quantised by the functions that the converter uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.calibration_statistics import InputStatistics
from nvlm_trt.decoder.quantize import INT8_MAX, int4_codes, int8_codes, scale_of

FACTOR_RANGE = (1e-4, 1e4)
"""Factors are kept within this, as in modelopt/torch/quantization/model_calib.py."""

CHUNK_VALUES = 8 << 20
"""Values of a weight that are worked on at a time: 32 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best factors.

    Attributes:
        alpha: Their strength.
        prequant: float32 [in], values that bfloat16 holds, all positive.
        error: Squared error of the quantised output, relative to the squares of the exact output.
        error_at_zero: The same for the grid's first alpha, 0: round-to-nearest without factors in AWQ.
    """

    alpha: float
    prequant: torch.Tensor
    error: float
    error_at_zero: float


class Scheme(Protocol):
    """How a precision makes factors and what it does to smoothed inputs and weights."""

    def divisors(self, alpha: float) -> torch.Tensor:
        """What inputs are divided by, float32 [in], not yet rounded."""

    def quantized_rows(self, rows: torch.Tensor, prequant: torch.Tensor) -> torch.Tensor:
        """The rows as the matrix product takes them, float32 [rows, in], of rows in bfloat16."""

    def quantized_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Some outputs' weights as the matrix product takes them, float32 [out, in], of float32."""


class SmoothQuant:
    """INT8 weights with a scale an output, INT8 inputs with one static scale (arXiv 2211.10438, equation 4).

    Args:
        inputs: What was seen of the inputs.
        weights: The weights that share them, [out, in] each.
    """

    def __init__(self, inputs: InputStatistics, weights: Sequence[torch.Tensor]) -> None:
        self._amax = inputs.amax
        self._weight_amax = torch.stack([chunk.abs().amax(dim=0) for chunk in _chunks(weights)]).amax(dim=0)

    def divisors(self, alpha: float) -> torch.Tensor:
        """amax(x)^alpha / amax(W)^(1 - alpha) of each channel; 1 for channels that are always 0."""
        tiny = torch.finfo(torch.float32).tiny
        divisors = self._amax.pow(alpha) / self._weight_amax.pow(1 - alpha).clamp(min=tiny)
        return divisors.clamp(*FACTOR_RANGE).masked_fill(self._amax == 0, 1.0)

    def quantized_rows(self, rows: torch.Tensor, prequant: torch.Tensor) -> torch.Tensor:
        """Codes times the scale that the largest smoothed input of all samples gives."""
        scale = scale_of(smoothed_amax(self._amax, prequant), INT8_MAX)
        codes = ((rows * prequant.to(rows.dtype)).float() / scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX)
        return codes * scale

    def quantized_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes times the scale of their output."""
        codes, scale = int8_codes(weight)
        return codes.float() * scale[:, None]


class Awq:
    """INT4 weights with a scale a group of inputs, inputs as they are (arXiv 2306.00978, section 3.2).

    Args:
        inputs: What was seen of the inputs.
        group_size: Neighbouring inputs that share a scale; a last group may hold fewer.
    """

    def __init__(self, inputs: InputStatistics, group_size: int) -> None:
        self._mean = inputs.mean
        self._group_size = group_size

    def divisors(self, alpha: float) -> torch.Tensor:
        """mean|x|^alpha of each channel, spread evenly around 1 by its extremes (llm-awq's auto_scale.py)."""
        live = self._mean > 0
        if not bool(live.any()):
            return torch.ones_like(self._mean)
        divisors = self._mean.pow(alpha).clamp(*FACTOR_RANGE)
        seen = divisors[live]
        return (divisors / (seen.max() * seen.min()).sqrt()).masked_fill(~live, 1.0)

    def quantized_rows(self, rows: torch.Tensor, prequant: torch.Tensor) -> torch.Tensor:
        """Smoothed inputs, rounded to bfloat16 as the product with the factors is."""
        return (rows * prequant.to(rows.dtype)).float()

    def quantized_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes times the scale of their group, which is rounded to bfloat16."""
        width = weight.shape[1]
        padded = F.pad(weight, (0, -width % self._group_size))
        codes, scale = int4_codes(padded, self._group_size, torch.bfloat16)
        return (codes.float() * scale.float().repeat_interleave(self._group_size, dim=1))[:, :width]


def smoothed_amax(amax: torch.Tensor, prequant: torch.Tensor) -> torch.Tensor:
    """The largest absolute input after its factors, float32 [1]; products are rounded to bfloat16, as they will be."""
    return (amax.bfloat16() * prequant.bfloat16()).float().max().reshape(1)


def search_prequant(
    scheme: Scheme, inputs: InputStatistics, weights: Sequence[torch.Tensor], alphas: Sequence[float]
) -> Found:
    """The factors of the best alpha; of equally good ones the first.

    Args:
        scheme: How they are made and used.
        inputs: What was seen of the inputs.
        weights: The weights that share them, [out, in] each.
        alphas: The grid, ascending from 0.
    """
    rows = inputs.rows
    exact = [rows.float() @ chunk.t() for chunk in _chunks(weights)]
    energy = sum(float(part.square().sum(dtype=torch.float64)) for part in exact)
    tried: list[tuple[float, torch.Tensor, float]] = []
    for alpha in alphas:
        prequant = (1.0 / scheme.divisors(alpha)).bfloat16().float()
        quantized = scheme.quantized_rows(rows, prequant)
        error = 0.0
        for chunk, expected in zip(_chunks(weights), exact, strict=True):
            output = quantized @ scheme.quantized_weight(chunk / prequant).t()
            error += float((output - expected).square_().sum(dtype=torch.float64))
        tried.append((alpha, prequant, error / energy if energy else 0.0))
    alpha, prequant, error = min(tried, key=lambda one: one[2])
    return Found(alpha, prequant, error, tried[0][2])


def _chunks(weights: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Some rows at a time, in float32."""
    for weight in weights:
        for part in torch.split(weight, max(1, CHUNK_VALUES // weight.shape[1])):
            yield part.float()
