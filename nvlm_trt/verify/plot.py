"""The sensitivity of layers as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from nvlm_trt.verify.layer_errors import LayerCost
from nvlm_trt.verify.report import VerifyReport

PLOT_NAME = "sensitivity.png"


def leave_plot(report: VerifyReport, directory: Path) -> list[str]:
    """Draw the costs of layers into a directory, if they were measured; what a person is to be told of it."""
    if not report.costs:
        return []
    if find_spec("matplotlib") is None:
        return ["The sensitivity of layers is not drawn: that needs matplotlib, the extra `plots`."]
    plot_sensitivity(report.costs, report.excluded, directory / PLOT_NAME)
    return [f"The sensitivity of layers is drawn in {directory / PLOT_NAME}."]


def plot_sensitivity(costs: Sequence[LayerCost], excluded: Sequence[LayerCost], path: Path) -> None:
    """Write a PNG of bars, one a layer; those to exclude in another colour.

    Args:
        costs: At least one.
        excluded: Those to leave out of quantisation.
        path: The file; replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.22 * len(costs)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:red" if each in excluded else "tab:blue" for each in costs]
    axes.bar(range(len(costs)), [each.kl for each in costs], color=colours)
    axes.set_xticks(range(len(costs)), [each.name for each in costs], rotation=90, fontsize=7)
    axes.set_ylabel("KL divergence, nats")
    axes.set_title("Each layer quantised alone" + (" (red: exclude)" if excluded else ""))
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")
