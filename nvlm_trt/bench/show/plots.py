"""The report as PNG plots. matplotlib comes with the extra `plots` and is imported only to draw."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from nvlm_trt.bench.report import Figure, Report
from nvlm_trt.bench.show.canvas import canvas, place_of, png
from nvlm_trt.bench.show.size_plots import draw_growth, draw_sizes, sized_metrics
from nvlm_trt.errors import installing

PANELS: Final = (
    ("accuracy", None),
    ("size_on_disk", None),
    ("load_time", None),
    ("host_memory", None),
    ("gpu_memory", None),
    ("ttft", 1),
    ("itl", 1),
    ("tiles_per_s", None),
    ("vision_share", None),
    ("decode_share", None),
    ("repeated_image", None),
    ("repeated_question", None),
    ("second_turn", None),
    ("largest_gap", None),
    ("p99_gap", None),
    ("long_prompt_ttft", None),
)
"""Bars of the overview, as far as they were measured."""

COLUMNS: Final = 3

NO_PLOTS: Final = f"the report has no plots: they need matplotlib ({installing('plots')})"


def can_draw() -> bool:
    """Whether matplotlib is installed; where it is not, `NO_PLOTS` says what is missing."""
    return find_spec("matplotlib") is not None


def draw(report: Report) -> dict[str, bytes]:
    """Every plot as a PNG file, by name."""
    pictures = {"overview.png": _overview(report)}
    if len(report.workload.levels) > 1:
        pictures["throughput.png"] = _throughput(report)
    if sized := sized_metrics(report):
        pictures["sizes.png"] = draw_sizes(report, sized)
    if report.growth:
        pictures["growth.png"] = draw_growth(report)
    return pictures


def _overview(report: Report) -> bytes:
    panels = [panel for panel in PANELS if any(_bars(report, *panel))]
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = canvas(4 * COLUMNS, 0.6 + rows * (1.0 + 0.35 * len(report.subjects)))
    for index, (metric, concurrency) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, COLUMNS, index)
        for place, (name, found) in enumerate(_bars(report, metric, concurrency)):
            value = found.range.value
            ends = [[max(0.0, value - found.range.low)], [max(0.0, found.range.high - value)]]
            axes.barh(place, value, xerr=ends, color=f"C{place_of(report, name)}", capsize=3)
        names = [name for name, _ in _bars(report, metric, concurrency)]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        made = report.metrics[metric]
        load = "" if concurrency is None else f", {concurrency} at a time"
        axes.set_title(f"{made.title}{load} [{made.unit}], {made.better} is better", fontsize=8)
    return png(figure)


def _throughput(report: Report) -> bytes:
    figure = canvas(12, 4)
    for index, metric in enumerate(("tokens_per_s", "ttft", "itl"), start=1):
        axes = figure.add_subplot(1, 3, index)
        for subject in report.subjects:
            points = [(level, subject.figure(metric, level)) for level in report.workload.levels]
            lines = [(level, found.range) for level, found in points if found]
            if lines:
                levels = [level for level, _ in lines]
                colour = f"C{place_of(report, subject.name)}"
                axes.plot(levels, [each.value for _, each in lines], marker="o", label=subject.name, color=colour)
                axes.fill_between(
                    levels, [each.low for _, each in lines], [each.high for _, each in lines], alpha=0.2, color=colour
                )
        made = report.metrics[metric]
        axes.set_title(f"{made.title} [{made.unit}], {made.better} is better", fontsize=9)
        axes.set_xlabel("requests at a time")
        axes.set_xticks(report.workload.levels)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return png(figure)


def _bars(report: Report, metric: str, concurrency: int | None) -> Iterator[tuple[str, Figure]]:
    for subject in report.subjects:
        found = subject.figure(metric, concurrency)
        if found is not None:
            yield subject.name, found
