"""Plots, where matplotlib is installed."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from nvlm_trt.bench.report import Report
from nvlm_trt.bench.show import plots


def test_plots_are_pictures_that_show_something(report: Report, scenario_report: Report) -> None:
    pytest.importorskip("matplotlib")
    assert set(plots.draw(report)) == {"overview.png", "throughput.png"}
    pictures = plots.draw(scenario_report)
    assert set(pictures) == {"overview.png", "throughput.png", "sizes.png", "growth.png"}
    for data in pictures.values():
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == "PNG"
            colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert len(colours) > 20


def test_one_level_of_load_needs_no_curve(report: Report) -> None:
    pytest.importorskip("matplotlib")
    workload = report.workload.model_copy(update={"concurrencies": (1,)})
    assert set(plots.draw(report.model_copy(update={"workload": workload}))) == {"overview.png"}


def test_without_the_load_there_is_no_curve_of_it(scenario_report: Report) -> None:
    pytest.importorskip("matplotlib")
    workload = scenario_report.workload.model_copy(update={"scenarios": ("prefill",)})
    assert "throughput.png" not in plots.draw(scenario_report.model_copy(update={"workload": workload}))
