"""How seconds grow with tokens in, tiles and streams: medians by size, and the power law through them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

from nvlm_trt.bench.fit import fit_power_law
from nvlm_trt.bench.metrics import Measured, SizeUnit
from nvlm_trt.bench.metrics.scale import ImageTiles
from nvlm_trt.bench.record import Frozen, RoundRecord

FEWEST: Final = 3
"""Sizes below which nothing is fitted: a line through two points says nothing."""


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
    """

    subject: str
    unit: SizeUnit
    cost: Literal["TTFT of a text", "vision of an image", "answers of streams"]
    points: tuple[GrowthPoint, ...]
    factor: float
    exponent: float
    residual: float


def growth_of(subject: str, rounds: Sequence[RoundRecord]) -> Iterator[GrowthReport]:
    """Every cost of which there are sizes enough."""
    costs: Sequence[tuple[SizeUnit, Literal["TTFT of a text", "vision of an image", "answers of streams"], _BySize]] = (
        ("tokens", "TTFT of a text", _texts),
        ("tiles", "vision of an image", _images),
        ("streams", "answers of streams", _streams),
    )
    for unit, cost, by_size in costs:
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
