"""The report as Markdown, word for word.

After a change that is meant: NVLM_TRT_RENEW_GOLDEN=1 pytest tests/bench/test_markdown.py, and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvlm_trt.bench.report import Range, Report
from nvlm_trt.bench.show.markdown import as_markdown, number, ranged, ratio

from .made_up import made_columns, made_report

GOLDEN = Path(__file__).with_name("golden") / "report.md"
SCENARIOS = GOLDEN.with_name("scenarios.md")


def test_the_report_reads_as_before(report: Report) -> None:
    shown = as_markdown(report, ["overview.png"])
    if os.environ.get("NVLM_TRT_RENEW_GOLDEN") == "1":
        GOLDEN.write_text(shown, encoding="utf-8")
        pytest.skip("the golden file is renewed")
    assert shown == GOLDEN.read_text(encoding="utf-8")


def test_every_figure_of_every_subject_is_shown(report: Report) -> None:
    shown = as_markdown(report)
    for subject in report.subjects:
        for figure in subject.figures:
            assert ranged(figure.range) in shown


def test_scenarios_read_as_before(scenario_report: Report) -> None:
    shown = as_markdown(scenario_report)
    begin, end = shown.index("## At several sizes"), shown.index("## Beside what")
    part = shown[: shown.index("## What a precision")] + shown[begin:end] + shown[shown.index("## How cost") :]
    if os.environ.get("NVLM_TRT_RENEW_GOLDEN") == "1":
        SCENARIOS.write_text(part, encoding="utf-8")
        pytest.skip("the golden file is renewed")
    assert part == SCENARIOS.read_text(encoding="utf-8")


def test_a_report_of_one_subject_without_ceilings_reads_too() -> None:
    report = made_report(made_columns()[:1]).model_copy(update={"ceilings": (), "complete": True, "task": None})
    shown = as_markdown(report)
    assert "not complete" not in shown
    assert "What the machine can do\n" not in shown
    assert "Load tools of others" not in shown
    assert "How cost grows" not in shown


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (0.012345, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits_that_count(value: float, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.0799, "0.08x"), (1.234, "1.2x"), (21.6, "22x"), (1234.5, "1,234x")])
def test_ratios_have_two(value: float, expected: str) -> None:
    assert ratio(value) == expected


def test_a_single_sample_has_no_range() -> None:
    assert ranged(Range(value=5, low=5, high=5, n=1, spread="quartiles")) == "5.00"
    assert ranged(Range(value=5, low=4, high=6, n=3, spread="quartiles")) == "5.00 (4.00 to 6.00)"
