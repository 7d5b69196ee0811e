"""A task that is put to a subject: answers are kept, and asked again only of somebody else."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvlm_trt.bench import accuracy
from nvlm_trt.bench.accuracy import measure_accuracy
from nvlm_trt.bench.subjects import EngineSubject, ReferenceSubject, ServerSubject, Subject
from nvlm_trt.errors import FaultError
from nvlm_trt.eval.answer import Answer
from nvlm_trt.eval.tasks import Sample

from .engines import copied


class Answerer:
    """Says yes, as often as it can."""

    def __init__(self, breath: int = 1000) -> None:
        self.asked: list[str] = []
        self.breath = breath

    def answer(self, sample: Sample) -> Answer:
        if len(self.asked) == self.breath:
            raise FaultError("out of breath")
        self.asked.append(sample.id)
        return Answer("yes", 1, 0.0)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    asked = {"images": [], "question": "?", "metric": "exact"}
    lines = [{**asked, "id": str(number), "answers": ["yes" if number < 3 else "no"]} for number in range(4)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "task.jsonl"


@pytest.fixture
def reference(small_engine: Path, tiny_checkpoint: Path) -> ReferenceSubject:
    """Asked one question after the other."""
    return ReferenceSubject(name="torch fp32", checkpoint=tiny_checkpoint, dtype="fp32", engine=small_engine)


def put(subject: Subject, task: Path, answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    def ready(_subject: Subject, _stack: ExitStack) -> Answerer:
        return answerer

    monkeypatch.setattr(accuracy, "_answerer", ready)
    return measure_accuracy(subject, task, None, task.parent / "answers").scores


def test_after_a_fault_only_what_is_missing_is_asked(
    reference: ReferenceSubject, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FaultError, match="out of breath"):
        put(reference, task, Answerer(breath=3), monkeypatch)
    second = Answerer()
    assert put(reference, task, second, monkeypatch) == (1.0, 1.0, 1.0, 0.0)
    assert second.asked == ["3"]


def test_answers_of_somebody_else_are_not_taken_over(
    reference: ReferenceSubject, task: Path, small_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = copied(small_engine, tmp_path / "fewer", max_tiles=3)
    others: list[Subject] = [
        reference,
        reference.model_copy(update={"dtype": "bf16"}),
        reference.model_copy(update={"engine": fewer}),
        EngineSubject(name="small", transport="local", engine=small_engine),
        EngineSubject(name="small", transport="local", engine=fewer),
    ]
    for subject in others:
        answerer = Answerer()
        put(subject, task, answerer, monkeypatch)
        assert len(answerer.asked) == 4, subject
        again = Answerer()
        put(subject.model_copy(update={"name": "renamed"}), task, again, monkeypatch)
        assert again.asked == [], subject


def test_answers_of_other_code_are_not_taken_over(
    reference: ReferenceSubject, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digest, asked in (("this", 4), ("this", 0), ("other", 4)):
        monkeypatch.setattr("nvlm_trt.subjects._code", lambda _, digest=digest: digest)
        answerer = Answerer()
        put(reference, task, answerer, monkeypatch)
        assert len(answerer.asked) == asked


def test_a_server_that_runs_already_is_asked_everything_each_time(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerSubject(name="server", transport="grpc", url="127.0.0.1:8001")
    for _ in range(2):
        answerer = Answerer()
        put(server, task, answerer, monkeypatch)
        assert len(answerer.asked) == 4
