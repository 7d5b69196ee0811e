"""Rounds in turns: who is measured when, and what a failure or an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.bench import run
from nvlm_trt.bench.peers.tool import ToolName
from nvlm_trt.bench.plan import Plan, Request, make_plan
from nvlm_trt.bench.record import AccuracyRecord, Device, Rate, RoundRecord
from nvlm_trt.bench.report import Report
from nvlm_trt.bench.run import Benchmark
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.bench.workload import Workload
from nvlm_trt.errors import FaultError

from .made_up import made_round

NAMES = ("torch bf16", "torch fp32", "small")


class Measurer:
    """Says made-up rounds, and does what it is told at some of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at: dict[str, Callable[[], None]] = {}

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.at.get(call, lambda: None)()

    def round(self, subject: Subject, number: int, tools: tuple[ToolName, ...] = ()) -> RoundRecord:
        self.note(f"{number} {subject.name}")
        return made_round(0.5 + number)

    def ceilings(self, device: Device) -> tuple[Rate, ...]:
        self.note(f"ceilings {device}")
        return (Rate(name="read", by="torch", per_s=10e9),)

    def accuracy(self, subject: Subject) -> AccuracyRecord:
        self.note(f"accuracy {subject.name}")
        return AccuracyRecord(scores=(1.0, 0.0), failed=1)


class Disturbed(Measurer):
    """Beside one of them others keep the machine busy."""

    def round(self, subject: Subject, number: int, tools: tuple[ToolName, ...] = ()) -> RoundRecord:
        busy = 1.9 if subject.name == NAMES[1] else 0.02
        return super().round(subject, number, tools).model_copy(update={"foreign_cores": busy})


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def plan(small_engine: Path, tmp_path: Path) -> Plan:
    task = tmp_path / "task.jsonl"
    task.write_text('{"id": "a", "images": [], "question": "?", "answers": ["!"], "metric": "exact"}\n')
    return make_plan(
        Request(
            engines=(small_engine,),
            grpc_url=None,
            http_url=None,
            transports=("local",),
            baselines=("bf16", "fp32"),
            checkpoint=None,
            workload=Workload(max_tokens=2, concurrencies=(1, 2), columns=1),
            rounds=3,
            task=task,
            task_limit=None,
            tools=(),
        )
    )


@pytest.fixture
def measurer() -> Measurer:
    return Measurer()


@pytest.fixture
def saved() -> list[Report]:
    return []


@pytest.fixture
def benchmark(plan: Plan, measurer: Measurer, saved: list[Report]) -> Benchmark:
    return Benchmark(plan, measurer, lambda _line: None, saved.append)


def rounds_of(report: Report) -> dict[str, int]:
    return {subject.name: subject.rounds for subject in report.subjects}


def test_each_round_measures_everybody_and_begins_with_another_one(benchmark: Benchmark, measurer: Measurer) -> None:
    assert benchmark.run()
    bf16, fp32, small = NAMES
    assert measurer.calls == [
        *("ceilings cpu", f"0 {bf16}", f"0 {fp32}", f"0 {small}"),
        *("ceilings cpu", f"1 {fp32}", f"1 {small}", f"1 {bf16}"),
        *("ceilings cpu", f"2 {small}", f"2 {bf16}", f"2 {fp32}"),
        *(f"accuracy {name}" for name in NAMES),
    ]
    report = benchmark.report()
    assert report.complete
    assert report.baseline == "torch bf16"
    assert rounds_of(report) == dict.fromkeys(NAMES, 3)
    assert [subject.figure("accuracy").range.value for subject in report.subjects] == [50.0] * 3  # type: ignore[union-attr]
    assert "small could not answer 1 questions of the task" in report.remarks


def test_the_report_is_saved_after_every_round_and_after_each_subjects_answers(
    benchmark: Benchmark, measurer: Measurer, saved: list[Report]
) -> None:
    measurer.at["accuracy torch fp32"] = raiser(FaultError("no memory"))
    benchmark.run()
    assert [report.rounds_done for report in saved] == [1, 2, 3, 3, 3, 3]
    answered = [sum(subject.figure("accuracy") is not None for subject in report.subjects) for report in saved]
    assert answered == [0, 0, 0, 1, 1, 2]
    assert saved[4].subjects[1].failure == "no memory"
    assert not any(report.complete for report in saved)


def test_an_engine_that_fails_is_measured_no_more_and_the_others_are(benchmark: Benchmark, measurer: Measurer) -> None:
    measurer.at["1 small"] = raiser(FaultError("the engine broke"))
    assert benchmark.run()
    report = benchmark.report()
    assert rounds_of(report) == {"torch bf16": 3, "torch fp32": 3, "small": 1}
    assert report.subjects[2].failure == "the engine broke"
    assert report.subjects[2].figure("ttft", 1) is not None
    assert not report.complete
    assert "2 small" not in measurer.calls
    assert "accuracy small" not in measurer.calls


def test_a_baseline_that_fails_at_once_leaves_figures_without_ratios(benchmark: Benchmark, measurer: Measurer) -> None:
    measurer.at["0 torch bf16"] = raiser(FaultError("no memory"))
    benchmark.run()
    small = benchmark.report().subjects[2].figure("ttft", 1)
    assert small is not None
    assert small.ratio is None


def test_when_everybody_has_failed_nothing_more_is_measured(benchmark: Benchmark, measurer: Measurer) -> None:
    for name in NAMES:
        measurer.at[f"0 {name}"] = raiser(FaultError("no memory"))
    assert benchmark.run()
    assert measurer.calls == ["ceilings cpu", *(f"0 {name}" for name in NAMES)]
    assert not benchmark.report().complete


def test_a_busy_machine_is_remarked_upon(
    benchmark: Benchmark, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark.run()
    assert not any("not quiet" in remark for remark in benchmark.report().remarks)
    monkeypatch.setattr(run, "QUIET_CORES", 0.01)
    assert (
        "other work kept busy 0.1 cores beside torch bf16, 0.1 cores beside torch fp32" in benchmark.report().remarks[0]
    )


def test_whoever_was_disturbed_is_named_though_the_others_were_not(plan: Plan) -> None:
    benchmark = Benchmark(plan, Disturbed(), lambda _line: None, lambda _report: None)
    benchmark.run()
    (remark,) = (each for each in benchmark.report().remarks if "not quiet" in each)
    assert f"other work kept busy 1.9 cores beside {NAMES[1]} (medians)" in remark


def test_without_ceilings_everything_else_is_measured(benchmark: Benchmark, measurer: Measurer) -> None:
    measurer.at["ceilings cpu"] = raiser(FaultError("torch is missing"))
    benchmark.run()
    report = benchmark.report()
    assert report.ceilings == ()
    assert "what the machine can do was not measured: torch is missing" in report.remarks
    assert rounds_of(report) == dict.fromkeys(NAMES, 3)


@pytest.mark.parametrize("moment", ["1 torch fp32", "1 torch bf16", "2 torch fp32"])
def test_an_interruption_leaves_whole_rounds_only(moment: str, benchmark: Benchmark, measurer: Measurer) -> None:
    measurer.at[moment] = raiser(KeyboardInterrupt())
    assert not benchmark.run()
    done = int(moment[0])
    report = benchmark.report()
    assert rounds_of(report) == dict.fromkeys(NAMES, done)
    assert (report.rounds_done, report.rounds_asked, report.complete) == (done, 3, False)
    assert report.ceilings[0].range.n == done
    assert Report.model_validate_json(report.encoded()) == report


def test_an_interruption_while_questions_are_answered_keeps_all_rounds(
    benchmark: Benchmark, measurer: Measurer
) -> None:
    measurer.at["accuracy torch fp32"] = raiser(KeyboardInterrupt())
    assert not benchmark.run()
    report = benchmark.report()
    assert rounds_of(report) == dict.fromkeys(NAMES, 3)
    assert not report.complete
    assert report.subjects[0].figure("accuracy") is not None
    assert report.subjects[1].figure("accuracy") is None


def test_an_interruption_before_the_first_round_is_over_leaves_no_report(
    benchmark: Benchmark, measurer: Measurer, saved: list[Report]
) -> None:
    measurer.at["0 torch fp32"] = raiser(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        benchmark.run()
    assert saved == []
