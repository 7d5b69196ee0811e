"""Two reports side by side."""

from __future__ import annotations

from typing import Any

import pytest

from nvlm_trt.bench.quiet import NOT_QUIET
from nvlm_trt.bench.report import Report, Task
from nvlm_trt.bench.show.compare import Difference, compare

from .made_scene import BOUNDS
from .made_up import made_columns, made_report, made_round


def difference(first: Report, second: Report, metric: str, concurrency: int | None, subject: str) -> Difference:
    (found,) = (
        each
        for each in compare(first, second).differences
        if (each.metric, each.concurrency, each.subject) == (metric, concurrency, subject)
    )
    return found


def changed(*ttfts: float) -> Report:
    """The report after the engine's rounds were others."""
    columns = made_columns()
    columns[1].rounds = [made_round(*ttfts)]
    return made_report(columns)


def test_a_report_does_not_differ_from_itself(report: Report) -> None:
    found = compare(report, report)
    assert found.differences
    assert {each.verdict for each in found.differences} == {"within spread", "one sample", "not judged"}
    assert {each.ratio for each in found.differences} <= {1.0, None}
    assert (found.only_first, found.only_second) == ((), ())


@pytest.mark.parametrize(
    ("ttfts", "verdict", "ratio"),
    [((0.2, 0.3, 0.4), "better", 0.5), ((1.1, 1.2, 1.3), "worse", 2.0), ((0.55, 0.66, 0.7), "within spread", 1.1)],
)
def test_what_moves_beyond_its_spread_is_better_or_worse(
    ttfts: tuple[float, ...], verdict: str, ratio: float, report: Report
) -> None:
    found = difference(report, changed(*ttfts), "ttft", 1, "mini-fp32")
    assert (found.verdict, found.ratio) == (verdict, pytest.approx(ratio))


def test_one_sample_has_no_spread_and_gets_no_verdict(report: Report) -> None:
    for first, second in ((report, changed(0.01)), (changed(0.01), report)):
        found = difference(first, second, "ttft", 1, "mini-fp32")
        assert (found.verdict, found.ratio == 1) == ("one sample", False)


def test_what_disturbed_the_machine_is_not_judged(report: Report) -> None:
    assert difference(report, report, "others_load", None, "mini-fp32").verdict == "not judged"


def test_a_rate_that_rises_is_better(report: Report) -> None:
    found = difference(report, changed(0.31, 0.32), "prefill_tokens_per_s", None, "mini-fp32")
    assert found.verdict == "better"
    assert found.ratio is not None
    assert found.ratio > 1


def test_subjects_of_one_report_only_are_named(report: Report) -> None:
    fewer = made_report(made_columns()[:1])
    found = compare(report, fewer)
    assert found.only_first == ("mini-fp32", "mini-fp32 (grpc)")
    assert {each.subject for each in found.differences} == {"torch fp32"}
    assert compare(fewer, report).only_second == found.only_first


def test_what_makes_reports_hard_to_compare_is_said(report: Report) -> None:
    other = report.model_copy(
        update={
            "workload": report.workload.model_copy(update={"max_tokens": 64}),
            "machine": report.machine.model_copy(update={"processor": "Abacus 1"}),
            "task": None,
            "complete": True,
        }
    )
    remarks = "\n".join(compare(report, other).remarks)
    assert "max_tokens 11 and 64" in remarks
    assert "2 cores of Abacus 9000 and 2 cores of Abacus 1" in remarks
    assert "different tasks" in remarks
    assert "not complete" in remarks
    assert compare(other, other).remarks == ()


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"prompt_tokens": 7}, "the prompts differ: 130 and 7 tokens"),
        ({"bounds": BOUNDS.model_copy(update={"max_tiles": 4})}, "engines take other tiles"),
        ({"task": Task(name="gate.jsonl", sha256="ab", samples=10)}, "110 questions of gate.jsonl and 10 questions"),
        ({"remarks": (f"{NOT_QUIET}: much",)}, f"of 2026-01-02T03:04:05+00:00: {NOT_QUIET}: much"),
    ],
)
def test_what_else_makes_them_hard_to_compare(update: dict[str, Any], said: str, report: Report) -> None:
    base = {
        "complete": True,
        "bounds": BOUNDS,
        "prompt_tokens": 130,
        "task": Task(name="gate.jsonl", sha256="ab", samples=110),
    }
    first = report.model_copy(update=base)
    (remark,) = compare(first, first.model_copy(update=update)).remarks
    assert said in remark


def test_another_gpu_precision_or_formula_is_said(report: Report) -> None:
    first = report.model_copy(update={"complete": True})
    gpu = first.machine.model_copy(update={"gpus": ("Abacus X",)})
    (remark,) = compare(first, first.model_copy(update={"machine": gpu})).remarks
    assert remark == "the machines differ: 2 cores of Abacus 9000 and 2 cores of Abacus 9000, Abacus X"
    subjects = [each.model_copy(update={"precision": "guessed"}) for each in first.subjects]
    remarks = compare(first, first.model_copy(update={"subjects": tuple(subjects)})).remarks
    assert [remark.endswith(" and guessed") for remark in remarks] == [True] * len(subjects)
    ttft = first.metrics["ttft"].model_copy(update={"formula": "by feeling"})
    (remark,) = compare(first, first.model_copy(update={"metrics": {**first.metrics, "ttft": ttft}})).remarks
    assert remark == "time to first token is worked out in two ways"


def test_rows_and_json_hold_every_difference(report: Report) -> None:
    found = compare(report, changed(0.2, 0.3, 0.4))
    rows = list(found.rows())
    assert len(rows) == len(found.differences) == len(found.as_json()["differences"])  # type: ignore[arg-type]
    title = "time to first token, 1 at a time [ms] ↓"
    assert ["mini-fp32", title, "600 (550 to 650)", "300 (250 to 350)", "0.50x", "better"] in rows
