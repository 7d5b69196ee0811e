"""One round for real, on tiny shapes: is everything there? How fast it was is nobody's business here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import psutil
import pytest
from PIL import Image

from nvlm_trt.bench import child, worker
from nvlm_trt.bench.accuracy import measure_accuracy
from nvlm_trt.bench.ceilings import measure_ceilings
from nvlm_trt.bench.child import TaskFiles, Workers
from nvlm_trt.bench.loading import Loaded
from nvlm_trt.bench.peers import RUN, PeerTask
from nvlm_trt.bench.peers.tool import ToolName
from nvlm_trt.bench.plan import Plan, Request, make_plan
from nvlm_trt.bench.record import AccuracyRecord, Device, Rate, RequestRecord, RoundRecord
from nvlm_trt.bench.report import Report
from nvlm_trt.bench.run import Benchmark
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.bench.worker import RoundJob, measure_round
from nvlm_trt.bench.workload import Question, Workload
from nvlm_trt.errors import FaultError, ServerError

from .engines import NVIDIA_SMI, on_path
from .made_up import made_request

WORKLOAD = Workload(
    max_tokens=3,
    concurrencies=(1, 2),
    requests=2,
    warmup=1,
    columns=1,
    scenarios=("load", "repeat", "turns", "streams", "vision"),
    repeats=1,
)
SIZED = {"image_ttft": [1, 5, 7], "image_tiles_per_s": [1, 5, 7], "image_share": [1, 5, 7]}


class InThisProcess:
    """Measures as the workers do, on small ceilings."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self.plan, self.scratch = plan, scratch
        self.records: dict[str, RoundRecord] = {}

    def round(self, subject: Subject, number: int, tools: tuple[ToolName, ...] = ()) -> RoundRecord:
        job = RoundJob(
            subject=subject,
            workload=WORKLOAD,
            number=number,
            bounds=self.plan.bounds_of(subject),
            tools=tools,
            result=self.scratch / "unused",
        )
        self.records[subject.name] = measure_round(job)
        return self.records[subject.name]

    def ceilings(self, device: Device) -> tuple[Rate, ...]:
        return measure_ceilings(device, side=32, read_bytes=1 << 16)

    def accuracy(self, subject: Subject) -> AccuracyRecord:
        assert self.plan.request.task is not None
        return measure_accuracy(subject, self.plan.request.task, self.plan.request.task_limit, self.scratch / "answers")


@pytest.fixture(scope="module")
def task(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    photographs["chelsea"].resize((112, 112)).save(folder / "cat.png")
    asked = {"question": "What is this?", "answers": ["a cat"], "metric": "exact", "max_tokens": 2}
    lines = [{"id": str(number), "images": ["cat.png"] * number, **asked} for number in range(3)]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "task.jsonl"


@pytest.fixture(scope="module")
def plan(small_engine: Path, task: Path) -> Plan:
    baselines: tuple[Literal["bf16", "fp32"], ...] = ("fp32",)
    return make_plan(
        Request(
            engines=(small_engine,),
            grpc_url=None,
            http_url=None,
            transports=("local",),
            baselines=baselines,
            checkpoint=None,
            workload=WORKLOAD,
            rounds=1,
            task=task,
            task_limit=None,
            tools=(),
        )
    )


@pytest.fixture(scope="module")
def measured(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, RoundRecord]]:
    """The report of one round, and the raw records by subject."""
    measurer = InThisProcess(plan, tmp_path_factory.mktemp("round"))
    benchmark = Benchmark(plan, measurer, lambda _line: None, lambda _report: None)
    assert benchmark.run()
    return benchmark.report(), measurer.records


def test_a_round_of_engine_and_reference_leaves_a_complete_report(measured: tuple[Report, object]) -> None:
    report, _ = measured
    assert report.complete
    assert [subject.failure for subject in report.subjects] == [None, None]
    assert {ceiling.name for ceiling in report.ceilings} == {"read", "fp32", "bf16", "int8"}
    for subject in report.subjects:
        once = {figure.metric for figure in subject.figures if figure.concurrency is figure.size is None}
        others = {name for name, made in report.metrics.items() if made.section in ("load", "scale", "stall")}
        assert once == set(report.metrics) - others - {"gpu_memory"}
        sizes = {metric: [each.size for each in subject.figures if each.metric == metric] for metric in SIZED}
        assert sizes == SIZED
        loaded = [(figure.metric, figure.concurrency) for figure in subject.figures if figure.concurrency is not None]
        metrics = [name for name, made in report.metrics.items() if made.section == "load"]
        assert loaded == [(metric, level) for metric in metrics for level in (1, 2)]
        counts = {figure.metric: figure.range.n for figure in subject.figures}
        assert (counts["accuracy"], counts["tokens_per_s"], counts["ttft"]) == (3, 1, 2)
    assert "small could not answer 1 questions of the task" in report.remarks  # two images, and the recipe allows one
    assert report.machine.cores >= 1
    assert report.machine.memory_bytes > 0
    assert "python" in report.machine.versions


def test_reference_and_engine_are_asked_for_the_same_tokens(
    plan: Plan, measured: tuple[object, dict[str, RoundRecord]]
) -> None:
    _, records = measured
    reference, engine = (records[subject.name] for subject in plan.subjects)
    for ours, theirs in zip(engine.waves[0].requests, reference.waves[0].requests, strict=True):
        assert ours.prompt_tokens == theirs.prompt_tokens == plan.prompt_tokens
        assert ours.output_tokens == theirs.output_tokens == WORKLOAD.max_tokens
        assert ours.tiles == theirs.tiles == 1
        for request in (ours, theirs):
            assert request.preprocess_s is not None
            assert request.vision_s is not None
            assert request.preprocess_s + request.vision_s < request.ttft_s < request.total_s
    assert len(engine.warmup) == 1
    assert [wave.concurrency for wave in engine.waves] == [1, 2]


def test_a_worker_measures_in_a_process_of_its_own(plan: Plan) -> None:
    said: list[str] = []
    record = Workers(WORKLOAD, plan.bounds_of, timeout=300, say=said.append).round(plan.subjects[1], 0)
    assert said == ["1 at a time", "2 at a time", "repeat", "turns", "streams", "vision"]
    assert record.peak_bytes is not None
    assert record.before_bytes is not None
    assert record.peak_bytes > record.before_bytes > 10 << 20
    assert record.load_s is not None
    assert len(record.waves[1].requests) == 2


def test_what_a_worker_cannot_do_comes_back_as_one_sentence(plan: Plan, tmp_path: Path) -> None:
    gone = plan.subjects[1].model_copy(update={"engine": tmp_path / "gone"})
    with pytest.raises(FaultError, match=r"the engine directory is incomplete; seen: no recipe\.yaml"):
        Workers(WORKLOAD, plan.bounds_of, timeout=300).round(gone, 0)


def test_a_worker_that_does_not_end_is_ended(plan: Plan) -> None:
    with pytest.raises(FaultError, match=r"took too long; seen: 0\.01 s"):
        Workers(WORKLOAD, plan.bounds_of, timeout=0.01).round(plan.subjects[1], 0)


def test_what_a_worker_leaves_behind_is_ended_with_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a load tool of others may, whose first process ends before its others."""
    leaves = "import subprocess, sys; sys.stdin.read(); print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    monkeypatch.setattr(child, "WORKER", ("-c", leaves))
    said: list[str] = []
    with pytest.raises(FaultError):  # it leaves no record
        Workers(WORKLOAD, plan.bounds_of, timeout=60, say=said.append).round(plan.subjects[1], 0)
    (pid,) = said
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_a_worker_has_all_the_time_it_needs_for_a_task_and_leaves_its_answers(
    plan: Plan, task: Path, tmp_path: Path
) -> None:
    files = TaskFiles(task, 2, tmp_path / "answers")
    served = plan.subjects[1].model_copy(update={"name": "small (grpc)"})  # by name alone: it answers in its process
    assert Workers(WORKLOAD, plan.bounds_of, 0.01, files).accuracy(served).failed == 0
    lines = (tmp_path / "answers" / "small-grpc" / "records.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == ["0", "1"]


class Silent:
    """Answers at once."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def ask(self, question: Question) -> RequestRecord:
        self.asked.append(question)
        return made_request()

    def close(self) -> None:
        """Nothing is left to close."""


def test_our_own_figures_stand_beside_a_tool_that_left_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path, "perf_analyzer", "exit 0", monkeypatch)
    monkeypatch.setattr(worker, "load", lambda *_: Loaded(Silent(), 1.0, 0, "127.0.0.1:1"))
    job = RoundJob(
        subject=plan.subjects[1],
        workload=WORKLOAD,
        number=0,
        bounds=plan.bounds,
        tools=("perf_analyzer",),
        result=tmp_path / "unused",
    )
    record = measure_round(job)
    assert [len(wave.requests) for wave in record.waves] == [2, 2]
    assert [(peer.concurrency, peer.figures) for peer in record.peers] == [(1, {}), (2, {})]
    assert all("perf_analyzer left no profile.json" in (peer.error or "") for peer in record.peers)


@pytest.mark.parametrize(("device", "expected"), [("cuda", 3000 << 20), ("cpu", None)])
def test_memory_of_the_gpu_is_that_of_a_subject_on_it(
    device: Device, expected: int | None, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").write_text("1000\n")
    on_path(tmp_path, "nvidia-smi", NVIDIA_SMI.format(folder=tmp_path, mebibytes=81559), monkeypatch)

    def load(*_: object) -> Loaded:
        (tmp_path / "used").write_text("4000\n")
        return Loaded(Silent(), 1.0, 0)

    monkeypatch.setattr(worker, "load", load)
    job = RoundJob(
        subject=plan.subjects[1].model_copy(update={"device": device}),
        workload=WORKLOAD,
        number=0,
        bounds=plan.bounds,
        result=tmp_path / "unused",
    )
    assert measure_round(job).gpu_peak_bytes == expected


def test_tools_of_others_get_requests_that_nobody_else_had(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Question]] = []

    def run(task: PeerTask) -> dict[str, tuple[float, ...]]:
        asked.append(list(task.questions))
        if task.concurrency == 2:
            raise ServerError("it crashed")
        return {"ttft": (1.0,)}

    silent = Silent()
    monkeypatch.setitem(RUN, "perf_analyzer", run)
    monkeypatch.setattr(worker, "load", lambda *_: Loaded(silent, 1.0, 0, "127.0.0.1:1"))
    workload = WORKLOAD.model_copy(update={"text_only": True, "scenarios": ("load",)})
    for number in range(2):
        job = RoundJob(
            subject=plan.subjects[1],
            workload=workload,
            number=number,
            bounds=plan.bounds,
            tools=("perf_analyzer",),
            result=tmp_path / "unused",
        )
        done, failed = measure_round(job).peers
        assert (done.concurrency, done.figures, done.error) == (1, {"ttft": (1.0,)}, None)
        assert (failed.concurrency, failed.figures, failed.error) == (2, {}, "it crashed")
    texts = [question.text for questions in (silent.asked, *asked) for question in questions]
    assert len(texts) == len(set(texts)) == 2 * (1 + 2 + 2 + 2 + 2)
