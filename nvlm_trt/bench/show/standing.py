"""Our engines beside engines of others: rates, their shares of what the machine can do, their ratios to each peer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nvlm_trt.bench.metrics.scale import (
    DecodeRate,
    DecodeReadShare,
    ImageShare,
    ImageTiles,
    ImageTtft,
    PromptRate,
    PromptShare,
    StreamThroughput,
)
from nvlm_trt.bench.report import Figure, Report, Row, SubjectReport

SHARES: Final = {
    PromptRate.name: PromptShare.name,
    DecodeRate.name: DecodeReadShare.name,
    StreamThroughput.name: None,
    ImageTtft.name: None,
    ImageTiles.name: ImageShare.name,
}
"""Figures that are set beside peers, and the metric that says which share of a ceiling each is."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One figure of one engine.

    Attributes:
        row: Which figure.
        engine: Whose.
        figure: What it is.
        share: Per cent of what the machine can do; None where no ceiling is known.
        ratios: To the figure of each peer in the order of `peers`; None where a peer has none.
    """

    row: Row
    engine: str
    figure: Figure
    share: float | None
    ratios: tuple[float | None, ...]

    @property
    def ceiling(self) -> float | None:
        """What the figure would be if all that the machine can do went into it."""
        return None if not self.share else self.figure.range.value * 100 / self.share


def peers(report: Report) -> list[SubjectReport]:
    """Engines of others that were measured."""
    return [subject for subject in report.subjects if subject.kind == "peer"]


def standings(report: Report) -> Iterator[Standing]:
    """Every figure of ours that some peer has too, by figure and engine."""
    others = peers(report)
    for row in report.rows():
        if row.metric not in SHARES or not any(peer.figure(*row) for peer in others):
            continue
        for subject in report.subjects:
            figure = subject.figure(*row)
            if subject.kind == "engine" and figure is not None:
                share = SHARES[row.metric]
                beside = subject.figure(share, row.concurrency, row.size) if share else None
                yield Standing(
                    row,
                    subject.name,
                    figure,
                    beside.range.value if beside else None,
                    tuple(_ratio(figure, peer.figure(*row)) for peer in others),
                )


def _ratio(ours: Figure, theirs: Figure | None) -> float | None:
    return None if theirs is None or not theirs.range.value else ours.range.value / theirs.range.value
