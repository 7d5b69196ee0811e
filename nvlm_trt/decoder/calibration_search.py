"""Search for the factors that inputs of a linear layer are multiplied by before they, or the weights, are quantised.

A linear layer computes ``(x * prequant) @ (W / prequant)^T``. The strength alpha of the factors is chosen on a grid:
the one whose quantised output is nearest to the exact one, in squares over the kept rows and all outputs. Factors are
used as they will be stored, rounded to bfloat16, and weights are quantised by the functions that the converter uses.

SmoothQuant's factors and its static scale come from the largest value of each channel. A strength judged on the very
rows that set these values looks better the more it trusts them: no row ever leaves the range that it has set itself,
while one of another prompt does. So each part of the kept rows is judged with what the rest has shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.calibration_statistics import InputStatistics
from nvlm_trt.decoder.quantize import INT8_MAX, int4_codes, int8_codes, scale_of

FACTOR_RANGE = (1e-4, 1e4)
"""Factors are kept within this, as in modelopt/torch/quantization/model_calib.py."""

PARTS = 4
"""Of the kept rows, each judged with what the others have shown. On random inputs of 5 to 20 samples with channels of
their own, two parts let one odd sample decide, and eight cut samples in two, which then know each other.
"""

CHUNK_VALUES = 8 << 20
"""Values of a weight that are worked on at a time: 32 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best factors.

    Attributes:
        alpha: Their strength.
        prequant: float32 [in], values that bfloat16 holds, all positive.
        error: Squared error of the quantised output over the rows of all trials, relative to the squares of the exact
            output.
        error_at_zero: The same for the grid's first alpha, 0: round-to-nearest without factors in AWQ.
    """

    alpha: float
    prequant: torch.Tensor
    error: float
    error_at_zero: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What a strength is judged on.

    Attributes:
        rows: Inputs, bfloat16 [rows, in].
        scheme: Makes factors of what it may know of the inputs.
    """

    rows: torch.Tensor
    scheme: Scheme


class Scheme(Protocol):
    """How a precision makes factors and what it does to smoothed inputs and weights."""

    def trials(self, rows: torch.Tensor) -> Sequence[Trial]:
        """What strengths are judged on, of the rows that were kept; each row is in one trial."""

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

    def trials(self, rows: torch.Tensor) -> Sequence[Trial]:
        """Each part of the rows, with a scheme that has not seen it: neighbouring rows are of the same samples."""
        parts = rows.tensor_split(min(PARTS, len(rows)))
        if len(parts) < 2:
            return (Trial(rows, self),)
        rests = [torch.cat([*parts[:index], *parts[index + 1 :]]) for index in range(len(parts))]
        return tuple(Trial(own, self._without(own, rest)) for own, rest in zip(parts, rests, strict=True))

    def _without(self, own: torch.Tensor, rest: torch.Tensor) -> SmoothQuant:
        """The scheme without rows of which it was made.

        Where they hold a channel's largest value, those of the rest take its place. They show no more than that of all
        other tokens, so that a strength is rather judged too hard; how often a channel leaves its range is right.
        """
        other = copy(self)
        other._amax = torch.where(own.abs().amax(dim=0) == self._amax, rest.abs().amax(dim=0).float(), self._amax)
        return other

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

    def trials(self, rows: torch.Tensor) -> Sequence[Trial]:
        """All rows: means hardly hang on single ones."""
        return (Trial(rows, self),)

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
    trials = scheme.trials(inputs.rows)
    exact = [[trial.rows.float() @ chunk.t() for chunk in _chunks(weights)] for trial in trials]
    energy = sum(_squares(part) for parts in exact for part in parts)
    errors = []
    for alpha in alphas:
        error = sum(_trial_error(trial, weights, parts, alpha) for trial, parts in zip(trials, exact, strict=True))
        errors.append(error / energy if energy else 0.0)
    best = errors.index(min(errors))
    return Found(alphas[best], _stored_factors(scheme, alphas[best]), errors[best], errors[0])


def _trial_error(trial: Trial, weights: Sequence[torch.Tensor], exact: Sequence[torch.Tensor], alpha: float) -> float:
    """Squared error of the quantised output over the rows of a trial."""
    prequant = _stored_factors(trial.scheme, alpha)
    quantized = trial.scheme.quantized_rows(trial.rows, prequant)
    error = 0.0
    for chunk, expected in zip(_chunks(weights), exact, strict=True):
        output = quantized @ trial.scheme.quantized_weight(chunk / prequant).t()
        error += _squares(output.sub_(expected))
    return error


def _stored_factors(scheme: Scheme, alpha: float) -> torch.Tensor:
    """What inputs are multiplied by, float32 [in], values that bfloat16 holds."""
    return (1.0 / scheme.divisors(alpha)).bfloat16().float()


def _squares(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _chunks(weights: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Some rows at a time, in float32."""
    for weight in weights:
        for part in torch.split(weight, max(1, CHUNK_VALUES // weight.shape[1])):
            yield part.float()
