"""How seconds grow with tokens in, tiles and streams: medians by size, and the power law through them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

from nvlm_trt.bench.fit import fit_power_law
from nvlm_trt.bench.metrics import Measured, SizeUnit
from nvlm_trt.bench.metrics.scale import ImageTiles
from nvlm_trt.bench.record import Frozen, RoundRecord
from nvlm_trt.bench.work import Work

FEWEST: Final = 3
"""Sizes below which nothing is fitted: a line through two points says nothing."""


Cost = Literal["TTFT of a text", "vision of an image", "answers of streams"]


class GrowthPoint(Frozen):
    """The median cost of a size.

    Attributes:
        size: Tokens, tiles or streams.
        seconds: The median.
        n: Samples.
    """

    size: int
    seconds: float
    n: int


class GrowthReport(Frozen):
    """How one cost of one subject grows.

    Attributes:
        subject: Whose.
        unit: What grows.
        cost: What the seconds are of.
        points: By size, ascending.
        factor: Fitted seconds of size 1.
        exponent: 1 is linear, 0 constant.
        residual: Root mean square of ln(seconds / fitted seconds).
        operations: The exponent of the arithmetic at the same sizes: seconds need not grow faster. None where it is not
            known, and of streams, which share the reading of weights.
    """

    subject: str
    unit: SizeUnit
    cost: Cost
    points: tuple[GrowthPoint, ...]
    factor: float
    exponent: float
    residual: float
    operations: float | None = None


def growth_of(subject: str, rounds: Sequence[RoundRecord], work: Work | None = None) -> Iterator[GrowthReport]:
    """Every cost of which there are sizes enough.

    Args:
        subject: Whose.
        rounds: What was measured.
        work: What it has to do; None where that is not known.
    """
    costs: Sequence[tuple[SizeUnit, Cost, _BySize, Callable[[int], float] | None]] = (
        ("tokens", "TTFT of a text", _texts, work.prefill_flops if work else None),
        ("tiles", "vision of an image", _images, work.vision_flops if work else None),
        ("streams", "answers of streams", _streams, None),
    )
    for unit, cost, by_size, operations in costs:
        samples = {size: seconds for size, seconds in sorted(by_size(rounds).items()) if seconds}
        if len(samples) < FEWEST:
            continue
        middles = [statistics.median(seconds) for seconds in samples.values()]
        law = fit_power_law(list(samples), middles)
        points = [
            GrowthPoint(size=size, seconds=middle, n=len(samples[size]))
            for size, middle in zip(samples, middles, strict=True)
        ]
        yield GrowthReport(
            subject=subject,
            unit=unit,
            cost=cost,
            points=tuple(points),
            factor=law.factor,
            exponent=law.exponent,
            residual=law.residual,
            operations=operations and fit_power_law(list(samples), [operations(size) for size in samples]).exponent,
        )


_BySize = Callable[[Sequence[RoundRecord]], Mapping[int, list[float]]]


def _texts(rounds: Sequence[RoundRecord]) -> Mapping[int, list[float]]:
    """TTFT by tokens of the prompt, as they were asked for."""
    found: dict[int, list[float]] = {}
    for case in (case for done in rounds for case in done.cases if case.scenario == "prefill"):
        found.setdefault(case.size or 0, []).extend(request.ttft_s for request in case.requests)
    return found


def _images(rounds: Sequence[RoundRecord]) -> Mapping[int, list[float]]:
    """Seconds in vision by tiles."""
    sizes = {case.size for done in rounds for case in done.cases if case.scenario == "vision" and case.size}
    return {size: ImageTiles(size=size).seconds(Measured(rounds)) for size in sizes}


def _streams(rounds: Sequence[RoundRecord]) -> Mapping[int, list[float]]:
    """Seconds until every stream has its whole answer, all of one length, by the number of streams."""
    found: dict[int, list[float]] = {}
    for case in (case for done in rounds for case in done.cases if case.scenario == "streams"):
        found.setdefault(case.size or 0, []).append(case.wall_s)
    return found
