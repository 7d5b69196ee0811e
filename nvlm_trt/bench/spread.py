"""A handful of samples in four numbers: a middle, a low and a high end, and how many there are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nvlm_trt.eval.summary import interval

Kind = Literal["quartiles", "wilson95", "normal95"]
"""What `low` and `high` are: quartiles of timings, or the 95% interval of a mean score, Wilson's or the normal one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of some samples.

    Attributes:
        value: The median, or the mean of scores.
        low: The lower end.
        high: The higher end.
        n: Samples.
        kind: What the ends are.
    """

    value: float
    low: float
    high: float
    n: int
    kind: Kind = "quartiles"


def quartiles(samples: Sequence[float]) -> Spread:
    """Median and quartiles, linear between the two nearest samples (numpy's default); there must be a sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(middle, low, high, len(samples))


def mean_score(scores: Sequence[float]) -> Spread:
    """The mean of scores and its 95% interval (nvlm_trt/eval/summary.py), normal for scores beyond 1; at least one."""
    kind: Kind = "wilson95" if max(scores) <= 1 else "normal95"
    return Spread(statistics.fmean(scores), *interval(scores), len(scores), kind)
