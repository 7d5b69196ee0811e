"""Figures of a run: the mean score in all and by category, each with a 95% interval."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from nvlm_trt.eval.records import Record

Z95 = 1.959963984540054
"""Of the standard normal distribution 95% lie within this many deviations."""


@dataclass(frozen=True, slots=True)
class Score:
    """The mean score of some samples.

    Attributes:
        name: Category; "" for all samples.
        samples: How many there are.
        failed: Those of them that could not be answered; they score 0.
        mean: Mean score.
        low: Lower end of the 95% interval, see `interval`.
        high: Its upper end.
    """

    name: str
    samples: int
    failed: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, records: list[Record]) -> Score:
        """The mean score of records, at least one."""
        scores = [record.score for record in records]
        failed = sum(record.error is not None for record in records)
        return cls(name, len(records), failed, statistics.fmean(scores), *interval(scores))


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run.

    Attributes:
        overall: All samples.
        categories: By category, in order of their names; none where samples have none.
        output_tokens: Tokens of all answers.
        answer_seconds: Seconds of all answers, one after the other.
    """

    overall: Score
    categories: tuple[Score, ...]
    output_tokens: int
    answer_seconds: float

    def as_json(self) -> dict[str, object]:
        """The figures, exact."""
        return asdict(self)


def summarise(records: Iterable[Record]) -> Summary:
    """The figures of a run's records, at least one."""
    everything = list(records)
    categories: dict[str, list[Record]] = defaultdict(list)
    for record in everything:
        categories[record.category].append(record)
    categories.pop("", None)
    return Summary(
        overall=Score.of("", everything),
        categories=tuple(Score.of(name, categories[name]) for name in sorted(categories)),
        output_tokens=sum(record.output_tokens for record in everything),
        answer_seconds=sum(record.seconds for record in everything),
    )


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean of scores, at least one: Wilson's, or the normal one where a score is above 1.

    Formula of the normal one: m +- 1.96 s / sqrt(n), s with n - 1, and nothing below 0. Scores of OCRBench are counts
    of right answers, and Wilson's is of shares. One score alone shows no spread: both ends are that score.

    Args:
        scores: 0 or more each.
    """
    mean, count = statistics.fmean(scores), len(scores)
    if max(scores) <= 1:
        return wilson(mean, count)
    half = Z95 * statistics.stdev(scores) / math.sqrt(count) if count > 1 else 0.0
    return max(0.0, mean - half), mean + half


def wilson(mean: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, JASA 22, 1927).

    Formula: (p + z^2/2n +- z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96. For scores between 0 and 1 it is
    wider than need be: no scores of the same mean spread more than zeros and ones.

    Args:
        mean: p, 0 to 1.
        count: n, at least 1.
    """
    square = Z95 * Z95 / count
    centre = (mean + square / 2) / (1 + square)
    half = Z95 * math.sqrt(mean * (1 - mean) / count + square / (4 * count)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)
