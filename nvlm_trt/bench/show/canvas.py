"""What plots are drawn on. matplotlib comes with the extra `plots` and is imported only to draw."""

from __future__ import annotations

import importlib
import io
from typing import Any, Final

from nvlm_trt.bench.report import Report

DPI: Final = 120


def canvas(width: float, height: float) -> Any:
    """A figure without a window system: no global state of pyplot's is touched."""
    made = importlib.import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(made)
    return made


def png(figure: Any) -> bytes:
    """The file of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def place_of(report: Report, name: str) -> int:
    """A subject has one colour in all plots."""
    return [subject.name for subject in report.subjects].index(name)
