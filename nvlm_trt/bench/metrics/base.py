"""What metrics are made of, and worked out from."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from nvlm_trt.bench.record import RequestRecord, RoundRecord
from nvlm_trt.bench.spread import Spread, quartiles
from nvlm_trt.bench.work import Arithmetic, Work

Better = Literal["higher", "lower"]
Section = Literal["cost", "speed", "load", "reuse", "stall", "scale", "ceiling", "warm-up", "disturbance"]
SizeUnit = Literal["tokens", "tiles", "streams"]


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of one subject.

    Attributes:
        rounds: Its rounds.
        work: What it has to do; None for a server whose engine is not known.
        read_ceiling: Bytes a second that this machine reads from memory; None where it was not measured.
        product_ceilings: Operations a second of matrix products, by arithmetic.
        size_bytes: Its engines on disk.
        scores: Of the task's answers, 0 to 1.
    """

    rounds: Sequence[RoundRecord]
    work: Work | None = None
    read_ceiling: float | None = None
    product_ceilings: dict[Arithmetic, float] | None = None
    size_bytes: int | None = None
    scores: Sequence[float] = ()

    def product_ceiling(self, arithmetic: Arithmetic | None) -> float | None:
        """Operations a second in that arithmetic; None where it was not measured."""
        return None if arithmetic is None else (self.product_ceilings or {}).get(arithmetic)

    def alone(self) -> Iterator[RequestRecord]:
        """Requests that had the engine to themselves."""
        for done in self.rounds:
            wave = done.wave(1)
            yield from wave.requests if wave else ()


@dataclass(frozen=True)
class Metric(ABC):
    """One figure.

    Attributes:
        size_unit: What `size` counts; None for a metric that has no sizes.
        concurrency: Requests under way; None where it does not matter.
        size: Tokens, tiles or streams of a scenario's case; None where it does not matter.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[Better]
    section: ClassVar[Section]
    size_unit: ClassVar[SizeUnit | None] = None
    concurrency: int | None = None
    size: int | None = None

    @abstractmethod
    def samples(self, measured: Measured) -> list[float]:
        """What was measured, in the metric's unit; empty where nothing was."""

    def spread(self, samples: Sequence[float]) -> Spread:
        """Median and quartiles."""
        return quartiles(samples)

    @classmethod
    def formula(cls) -> str:
        """The formula, from the docstring of the class."""
        found = re.search(r"Formula: (.+?)(?:\n\n|\Z)", inspect.getdoc(cls) or "", re.DOTALL)
        return " ".join(found.group(1).split()) if found else ""
