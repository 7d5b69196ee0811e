"""From raw rounds to the report: every metric of every subject, and its ratio to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nvlm_trt.bench.growth import GrowthReport, growth_of
from nvlm_trt.bench.metrics import METRICS, Measured, Metric, all_metrics
from nvlm_trt.bench.record import Rate, RateName, RoundRecord
from nvlm_trt.bench.report import (
    CeilingReport,
    Definition,
    Figure,
    PeerFigure,
    Range,
    SubjectReport,
)
from nvlm_trt.bench.spread import quartiles
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.bench.work import Arithmetic, Work

CEILING_UNITS: Mapping[RateName, Literal["GB/s", "GFLOP/s", "GOP/s"]] = {
    "read": "GB/s",
    "fp32": "GFLOP/s",
    "bf16": "GFLOP/s",
    "int8": "GOP/s",
}
ARITHMETICS: tuple[Arithmetic, ...] = ("fp32", "bf16", "int8")


@dataclass
class Column:
    """One subject while it is measured.

    Attributes:
        subject: Who.
        precision: Of its parts, in words.
        work: What it has to do, where that is known.
        size_bytes: On disk, where that is known.
        rounds: What was measured so far.
        scores: Of the task's answers.
        failure: Why it is measured no more.
        packages: Versions of a peer's packages.
    """

    subject: Subject
    precision: str
    work: Work | None
    size_bytes: int | None
    rounds: list[RoundRecord] = field(default_factory=list)
    scores: tuple[float, ...] = ()
    failure: str | None = None
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> str | None:
        """How a peer was set up, in its own words."""
        return next((done.settings for done in self.rounds if done.settings), None)

    def measured(self, ceilings: Sequence[CeilingReport]) -> Measured:
        """What metrics are worked out from."""
        best = {ceiling.name: 1e9 * ceiling.best for ceiling in ceilings}
        return Measured(
            rounds=tuple(self.rounds),
            work=self.work,
            read_ceiling=best.get("read"),
            product_ceilings={name: best[name] for name in ARITHMETICS if name in best},
            size_bytes=self.size_bytes,
            scores=self.scores,
        )


def ceiling_reports(rounds: Sequence[Sequence[Rate]]) -> tuple[CeilingReport, ...]:
    """The ceilings over all rounds, each through the library that was faster at its best."""
    reports = []
    for name, unit in CEILING_UNITS.items():
        by_library: dict[str, list[float]] = {}
        for rates in rounds:
            for rate in rates:
                if rate.name == name:
                    by_library.setdefault(rate.by, []).append(rate.per_s / 1e9)
        if by_library:
            library, samples = max(by_library.items(), key=lambda item: max(item[1]))
            spread = Range.of(quartiles(samples))
            reports.append(CeilingReport(name=name, unit=unit, by=library, best=max(samples), range=spread))
    return tuple(reports)


def subject_reports(
    columns: Sequence[Column], ceilings: Sequence[CeilingReport], concurrencies: Sequence[int]
) -> tuple[SubjectReport, ...]:
    """What was measured of every subject; the first one is the baseline."""
    metrics = all_metrics(concurrencies, [done for column in columns for done in column.rounds])
    base = dict(_figures(columns[0].measured(ceilings), metrics))
    reports = []
    for column in columns:
        figures = []
        for metric, (samples, spread) in _figures(column.measured(ceilings), metrics):
            against = base.get(metric)
            figures.append(
                Figure(
                    metric=metric.name,
                    concurrency=metric.concurrency,
                    size=metric.size,
                    range=spread,
                    ratio=spread.value / against[1].value if against and against[1].value else None,
                    samples=samples,
                )
            )
        subject = column.subject
        reports.append(
            SubjectReport(
                name=subject.name,
                kind=subject.kind,
                transport=subject.transport,
                precision=column.precision,
                rounds=len(column.rounds),
                settings=column.settings,
                packages=column.packages,
                failure=column.failure,
                figures=tuple(figures),
            )
        )
    return tuple(reports)


def _figures(measured: Measured, metrics: Sequence[Metric]) -> Iterator[tuple[Metric, tuple[tuple[float, ...], Range]]]:
    for metric in metrics:
        samples = metric.samples(measured)
        if samples:
            yield metric, (tuple(samples), Range.of(metric.spread(samples)))


def peer_figures(columns: Sequence[Column]) -> tuple[PeerFigure, ...]:
    """What load tools of others measured beside what we did in the same rounds."""
    found = []
    for column in columns:
        theirs: dict[tuple[str, str, int], list[float]] = {}
        ours: dict[tuple[str, str, int], list[float]] = {}
        for done in column.rounds:
            for peer in done.peers:
                for name, values in peer.figures.items():
                    key, metric = (peer.tool, name, peer.concurrency), METRICS[name](peer.concurrency)
                    theirs.setdefault(key, []).extend(values)
                    ours.setdefault(key, []).extend(metric.samples(Measured(rounds=(done,))))
        for (tool, name, level), samples in theirs.items():
            their, our = Range.of(quartiles(samples)), Range.of(quartiles(ours[tool, name, level]))
            found.append(
                PeerFigure(
                    tool=tool,
                    subject=column.subject.name,
                    metric=name,
                    concurrency=level,
                    theirs=their,
                    ours=our,
                    agree=their.overlaps(our) if their.n > 1 else None,
                )
            )
    return tuple(found)


def growth_reports(columns: Sequence[Column]) -> tuple[GrowthReport, ...]:
    """How the costs of every subject grow."""
    return tuple(found for column in columns for found in growth_of(column.subject.name, column.rounds, column.work))


def definitions() -> dict[str, Definition]:
    """Every metric by name."""
    return {
        name: Definition(
            title=metric.title,
            unit=metric.unit,
            better=metric.better,
            section=metric.section,
            formula=metric.formula(),
            size_unit=metric.size_unit,
        )
        for name, metric in METRICS.items()
    }


def names_only(images: Sequence[Path]) -> tuple[Path, ...]:
    """Names of the image files: a report shall not tell where they lay."""
    return tuple(Path(image.name) for image in images)
