"""Plots over sizes: rates of scenarios, and how costs grow."""

from __future__ import annotations

from typing import Any, Final

from nvlm_trt.bench.fit import PowerLaw
from nvlm_trt.bench.growth import GrowthReport
from nvlm_trt.bench.report import Report
from nvlm_trt.bench.show.canvas import canvas, place_of, png

COLUMNS: Final = 3


def sized_metrics(report: Report) -> list[str]:
    """Metrics of which some subject has figures at two sizes or more."""
    sizes: dict[str, set[int]] = {}
    for row in report.rows():
        if row.size is not None:
            sizes.setdefault(row.metric, set()).add(row.size)
    return [metric for metric, found in sizes.items() if len(found) > 1]


def draw_sizes(report: Report, metrics: list[str]) -> bytes:
    """A panel for each metric: a line for each subject, over the sizes."""
    figure = canvas(4 * COLUMNS, 3.4 * -(-len(metrics) // COLUMNS))
    for index, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(-(-len(metrics) // COLUMNS), COLUMNS, index)
        made = report.metrics[metric]
        for subject in report.subjects:
            found = sorted((each.size, each.range) for each in subject.figures if each.metric == metric and each.size)
            if found:
                sizes, ranges = zip(*found, strict=True)
                colour = f"C{place_of(report, subject.name)}"
                axes.plot(sizes, [each.value for each in ranges], marker="o", label=subject.name, color=colour)
                axes.fill_between(
                    sizes, [each.low for each in ranges], [each.high for each in ranges], alpha=0.2, color=colour
                )
        _ticks(axes, sorted({row.size for row in report.rows() if row.metric == metric and row.size}))
        axes.set_ylim(bottom=0)
        axes.set_title(f"{made.title} [{made.unit}], {made.better} is better", fontsize=8)
        axes.set_xlabel(made.size_unit)
    figure.axes[0].legend(fontsize=7)
    return png(figure)


def draw_growth(report: Report) -> bytes:
    """A panel for each cost, both axes logarithmic: medians, and the fitted line with its exponent."""
    costs = list(dict.fromkeys(each.cost for each in report.growth))
    figure = canvas(4.5 * len(costs), 4)
    for index, cost in enumerate(costs, start=1):
        axes = figure.add_subplot(1, len(costs), index)
        found = [each for each in report.growth if each.cost == cost]
        for each in found:
            _law(axes, each, f"C{place_of(report, each.subject)}")
        axes.set_yscale("log")
        _ticks(axes, sorted({point.size for each in found for point in each.points}))
        axes.set_title(f"{cost} [s]", fontsize=9)
        axes.set_xlabel(found[0].unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return png(figure)


def _law(axes: Any, growth: GrowthReport, colour: str) -> None:
    law = PowerLaw(growth.factor, growth.exponent, growth.residual)
    sizes = [point.size for point in growth.points]
    axes.plot(sizes, [point.seconds for point in growth.points], "o", color=colour)
    label = f"{growth.subject}: exponent {growth.exponent:.2f}, residual {growth.residual:.2f}"
    axes.plot(sizes, [law(size) for size in sizes], "--", color=colour, label=label)


def _ticks(axes: Any, sizes: list[int]) -> None:
    """A logarithmic axis that names the sizes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
    axes.set_xticks([], minor=True)
