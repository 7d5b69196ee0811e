"""`nvlm-trt bench`, as far as nothing has to be timed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.bench.child import Workers
from nvlm_trt.bench.record import Rate, RequestRecord, RoundRecord, WaveRecord
from nvlm_trt.bench.report import read_report
from nvlm_trt.bench.show import plots
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.errors import FaultError
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.miniature.shipped import GATE_TASK

Run = Callable[..., Any]
FEW = ("--max-tokens", 2, "--rounds", 2, "--columns", 1, "--concurrency", "1,2", "--no-plots")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """Workers that say made-up times; what is put in under a subject's name and round is raised there."""
    raised: dict[str, BaseException] = {}

    def measure(_: Workers, subject: Subject, number: int, tools: tuple[str, ...] = ()) -> RoundRecord:
        if f"{subject.name} {number}" in raised:
            raise raised[f"{subject.name} {number}"]
        request = RequestRecord(ttft_s=0.5, total_s=1.0, prompt_tokens=300, output_tokens=2, images=1)
        waves = tuple(WaveRecord(concurrency=level, wall_s=1.0, requests=(request,)) for level in (1, 2))
        return RoundRecord(load_s=1.0, before_bytes=1 << 20, peak_bytes=3 << 20, warmup=(request,), waves=waves)

    monkeypatch.setattr(Workers, "round", measure)
    monkeypatch.setattr(Workers, "ceilings", lambda _, device: (Rate(name="read", by="torch", per_s=1e10),))
    return raised


def test_a_dry_run_shows_who_would_be_measured(nvlm_trt: Run, small_engine: Path) -> None:
    shown = nvlm_trt("bench", small_engine, *FEW, "--dry-run")
    assert shown.code == 0
    assert "torch bf16" in shown.out
    assert "baseline" in shown.out
    facts = nvlm_trt("bench", small_engine, *FEW, "--dry-run", "--json", "--baseline", "none").json
    assert facts["subjects"] == [{"name": "small", "kind": "engine", "transport": "local"}]
    assert (facts["rounds"], facts["output_tokens"], facts["concurrencies"]) == (2, 2, [1, 2])
    assert facts["prompt_tokens"] > 16


def test_the_task_that_ships_is_known_by_its_name(nvlm_trt: Run, small_engine: Path) -> None:
    asked = ("bench", small_engine, *FEW, "--dry-run", "--json", "--task")
    assert nvlm_trt(*asked, "shipped:nvlm-d-mini").json["task_samples"] == len(read_tasks(GATE_TASK))
    refused = nvlm_trt(*asked, "shipped:other")
    assert (refused.code, "nothing of this name ships" in refused.err) == (2, True)


def test_scenarios_take_the_place_of_the_load(nvlm_trt: Run, small_engine: Path) -> None:
    asked = ("bench", small_engine, *FEW, "--dry-run", "--json", "--scenario", "stall,repeat")
    facts = nvlm_trt(*asked).json
    assert (facts["scenarios"], facts["concurrencies"], facts["requests_per_round"]) == (["stall", "repeat"], [], 2)
    facts = nvlm_trt(*asked[:-1], "load,repeat").json
    assert (facts["scenarios"], facts["concurrencies"]) == (["load", "repeat"], [1, 2])


def test_servers_can_be_kept_to_some_engines(nvlm_trt: Run, small_engine: Path) -> None:
    asked = ("bench", small_engine, *FEW, "--baseline", "none", "--transport", "local,grpc", "--dry-run", "--json")
    names = [[each["name"] for each in nvlm_trt(*asked, *more).json["subjects"]] for more in ((), ("--served", "all"))]
    assert names == [["small", "small (grpc)"]] * 2
    assert "no such engine to serve; seen: large" in nvlm_trt(*asked, "--served", "small, large").err


def test_the_report_is_written_and_shown(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path, made_up: dict[str, BaseException]
) -> None:
    shown = nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path / "out")
    assert shown.code == 0
    report = read_report(tmp_path / "out" / "report.json")
    assert report.complete
    assert [subject.name for subject in report.subjects] == ["torch bf16", "small"]
    assert shown.out == (tmp_path / "out" / "report.md").read_text() + "\n"
    assert "round 1 of 2: small" in shown.err
    assert f"written to {tmp_path / 'out'}" in shown.err
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text()


def test_json_is_the_report_and_nothing_else(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path, made_up: dict[str, BaseException]
) -> None:
    shown = nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path, "--json")
    assert shown.json == json.loads((tmp_path / "report.json").read_text())
    assert shown.err == ""


def test_a_failed_engine_is_told_by_the_exit_code_and_the_others_stand(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path, made_up: dict[str, BaseException]
) -> None:
    made_up["small 1"] = FaultError("the engine broke")
    shown = nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path)
    assert shown.code == 1
    reference, engine = read_report(tmp_path / "report.json").subjects
    assert (reference.rounds, engine.rounds, engine.failure) == (2, 1, "the engine broke")
    assert "small failed and is measured no more: the engine broke" in shown.err


def test_an_interruption_leaves_a_report_of_the_rounds_until_then(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path, made_up: dict[str, BaseException]
) -> None:
    made_up["torch bf16 1"] = KeyboardInterrupt()
    shown = nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path)
    assert shown.code == 130
    assert "interrupted after 1 of 2 rounds" in shown.err
    report = read_report(tmp_path / "report.json")
    assert (report.complete, report.rounds_done) == (False, 1)
    assert (tmp_path / "report.md").is_file()


def test_a_polite_kill_is_an_interruption(
    nvlm_trt: Run,
    small_engine: Path,
    tmp_path: Path,
    made_up: dict[str, BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = Workers.round

    def terminated(*given: object) -> object:
        if not given[2]:
            return measure(*given)
        # What the signal would call. A real one is not for this process: a library may have given its main thread a
        # stack for signals that is too small for this processor's registers.
        return signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)

    monkeypatch.setattr(Workers, "round", terminated)
    before = signal.getsignal(signal.SIGTERM)
    shown = nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path)
    assert shown.code == 130
    assert read_report(tmp_path / "report.json").rounds_done == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_reports_are_compared(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path, made_up: dict[str, BaseException]
) -> None:
    nvlm_trt("bench", small_engine, *FEW, "--output", tmp_path)
    path = tmp_path / "report.json"
    shown = nvlm_trt("bench", "--compare", path, path)
    assert shown.code == 0
    assert "within spread" in shown.out
    facts = nvlm_trt("bench", "--compare", path, path, "--json").json
    assert {each["verdict"] for each in facts["differences"]} == {"within spread", "one sample"}
    assert nvlm_trt("bench", "--compare", path, tmp_path / "none.json").code == 2


def test_without_matplotlib_the_report_has_no_plots_and_a_line_says_so(
    nvlm_trt: Run,
    small_engine: Path,
    tmp_path: Path,
    made_up: dict[str, BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _name: None)
    asked = ("bench", small_engine, *FEW[:-1], "--output", tmp_path / "out")
    for words in (("--dry-run",), ("--json",)):
        shown = nvlm_trt(*asked, *words)
        assert shown.code == 0
        assert shown.err == f"{plots.NO_PLOTS}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.json", "report.md"}
    assert list((tmp_path / "out").glob("*.png")) == []
    assert "matplotlib" not in nvlm_trt(*asked, "--dry-run", "--no-plots").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--transport", "pigeon"), "--transport has no such choice; seen: pigeon"),
        (("--baseline", "int8"), "--baseline has no such choice; seen: int8"),
        (("--peer-tools", "ab"), "--peer-tools has no such choice; seen: ab"),
        (
            ("--scenario", "load,rest"),
            "--scenario has no such choice; seen: rest; expected: load, repeat, turns, stall",
        ),
        (("--concurrency", "1,,2"), "--concurrency is a list of numbers"),
        (("--concurrency", "0"), "--concurrency is a list of numbers"),
        (("--task", "nowhere.jsonl"), "the task cannot be read"),
        (("--text-only", "--image", "cat.png"), "--text-only and --image exclude each other"),
        (("--requests", "1001"), "for '--requests'"),
        (("--prompt", ""), "--prompt is empty; seen: ''; expected: a text"),
        (("--task-limit", 3), "seen: --task-limit 3; expected: --task FILE beside it"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(
    words: tuple[object, ...], message: str, nvlm_trt: Run, small_engine: Path
) -> None:
    shown = nvlm_trt("bench", small_engine, *FEW, *words)
    assert shown.code == 2
    assert message in shown.err


def test_nothing_to_measure_is_said(nvlm_trt: Run) -> None:
    shown = nvlm_trt("bench", "--no-plots")
    assert shown.code == 2
    assert "give engine directories, --url or --http-url" in shown.err


def test_every_option_on_the_page_about_benchmarks_is_one(nvlm_trt: Run) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    named = {*re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)} - {
        "--no-deps",
        "--small",
        "--work",
    }  # of pip and of scripts
    shown = nvlm_trt("bench", "--help").out
    assert named
    assert {option for option in named if option not in shown} == set()
