"""`nvlm-trt verify` on engine directories of both targets."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import pytest

from nvlm_trt.cli.verify import _kept_answers
from nvlm_trt.errors import FaultError
from nvlm_trt.eval.answer import Answer, EngineAnswerer
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.lock import locked
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.recipe import parse_recipe

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def gpu_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the gpu target as far as a machine without a GPU builds it."""
    folder = tmp_path_factory.mktemp("gpu")
    recipe = folder / "gpu.yaml"
    recipe.write_text(
        "target: gpu\ndecoder_precision: bf16\nmax_input_len: 512\nmax_output_len: 32\nverify_prompts: 2\n"
    )
    engine = folder / "engine"
    build(BuildRequest(str(recipe), tiny_checkpoint, engine, Selection(until="verify")), Silent())
    return engine


def test_an_engine_directory_of_the_gpu_target_is_judged_without_a_gpu(nvlm_trt: Run, gpu_engine: Path) -> None:
    shown = nvlm_trt("verify", gpu_engine, "--prompts", 1, "--quiet")
    assert shown.code == 0, shown.out
    assert "Engines were not run" in shown.out
    assert {line.split()[0] for line in shown.out.splitlines()} >= {"prompt", "layers", "ranks"}


def test_what_the_build_found_is_not_replaced_and_the_build_still_stands(
    nvlm_trt: Run, gpu_engine: Path, tiny_checkpoint: Path
) -> None:
    of_the_build = (gpu_engine / "verify.json").read_bytes()
    facts = nvlm_trt("verify", gpu_engine, "--prompts", 1, "--tokens", 2, "--json").json
    assert facts != json.loads(of_the_build)
    assert (gpu_engine / "verify.json").read_bytes() == of_the_build
    words = ("build", gpu_engine.with_name("gpu.yaml"), "--checkpoint", tiny_checkpoint, "--output", gpu_engine)
    stages = nvlm_trt(*words, "--until", "verify", "--dry-run", "--json").json["stages"]
    assert {stage["name"]: stage["action"] for stage in stages}["verify"] == "skip"


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--tokens", 3000, "--tokens: Input should be less than or equal to 1024, seen: 3000"),
        ("--tokens", 0, "--tokens: Input should be greater than or equal to 1, seen: 0"),
        ("--prompts", 65, "--prompts: Input should be less than or equal to 64, seen: 65"),
    ],
)
def test_the_bounds_of_the_recipes_fields_hold_for_the_options(
    nvlm_trt: Run, gpu_engine: Path, option: str, value: int, complaint: str
) -> None:
    shown = nvlm_trt("verify", gpu_engine, option, value)
    assert (shown.code, shown.err) == (2, f"error: the recipe with these options: {complaint}\n")


def test_layers_and_what_they_cost_are_shown_when_asked_for(nvlm_trt: Run, small_engine: Path) -> None:
    plain = nvlm_trt("verify", small_engine, "--prompts", 2, "--tokens", 3)
    assert "<- worst" not in plain.out
    assert ">= 1" in plain.out  # top1_agreement of fp32
    shown = nvlm_trt("verify", small_engine, "--prompts", 2, "--tokens", 3, "--layers")
    assert shown.out.count("<- worst") == 2


@dataclass
class Asked:
    """What the engine was asked, and at which samples it fails."""

    samples: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked, answer = Asked(), EngineAnswerer.answer

    def watched(self: EngineAnswerer, sample: Sample) -> Answer:
        asked.samples.append(sample.id)
        if sample.id in asked.failing:
            raise FaultError("the power went off")
        return answer(self, sample)

    monkeypatch.setattr(EngineAnswerer, "answer", watched)
    return asked


@pytest.fixture
def task(photograph: Path, tmp_path: Path) -> Path:
    """Two questions about a photograph."""
    line = {"images": [str(photograph)], "question": "What?", "answers": ["a"], "metric": "exact", "max_tokens": 2}
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(json.dumps({"id": name} | line) for name in ("first", "second")))
    return path


def kept_answers(engine: Path) -> set[str]:
    return {folder.name for folder in engine.glob(".verify-task.*.work")}


def test_a_task_can_be_named_and_a_run_that_stopped_goes_on_after_its_last_answer(
    nvlm_trt: Run, small_engine: Path, task: Path, asked: Asked
) -> None:
    asked.failing = {"second"}
    words = ("verify", small_engine, "--prompts", 1, "--tokens", 2, "--json", "--task", task)
    stopped = nvlm_trt(*words)
    assert (stopped.code, asked.samples) == (1, ["first", "second"])
    assert len(kept_answers(small_engine)) == 1
    (small_engine / ".verify-task.0123.work").mkdir()
    asked.failing = set()
    facts = nvlm_trt(*words).json
    assert facts["figures"]["task"]["samples"] == 2
    assert asked.samples == ["first", "second", "second"]
    assert kept_answers(small_engine) == set()


def test_a_run_that_is_refused_leaves_the_answers_of_a_stopped_one_and_none_of_its_own(
    nvlm_trt: Run, small_engine: Path, task: Path, asked: Asked, tmp_path: Path
) -> None:
    asked.failing = {"second"}
    words = ("verify", small_engine, "--prompts", 1, "--tokens", 2, "--json")
    assert nvlm_trt(*words, "--task", task).code == 1
    kept = kept_answers(small_engine)
    (empty := tmp_path / "empty.jsonl").touch()
    for refused, complaint in (
        (("--task", empty), "the task is empty"),
        (("--task", tmp_path / "absent.jsonl"), "the task cannot be read"),
        (("--task", task, "--checkpoint", tmp_path / "absent"), "there is no checkpoint directory"),
        (("--task", task, "--tokens", 570), "the engine is too short"),
    ):
        shown = nvlm_trt(*words, *refused)
        assert (shown.code, complaint in shown.err) == (2, True), shown.err
        assert kept_answers(small_engine) == kept
    asked.failing = set()
    assert nvlm_trt(*words, "--task", task).code in (0, 1)
    assert asked.samples == ["first", "second", "second"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_judged_and_nothing_is_left_in_it(
    nvlm_trt: Run, small_engine: Path, task: Path, asked: Asked, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    before = sorted(small_engine.iterdir())
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: refuse(small_engine))
    monkeypatch.setattr("nvlm_trt.pipeline.digest.write_atomic", refuse)
    asked.failing = {"second"}
    words = ("verify", small_engine, "--prompts", 1, "--tokens", 2, "--json", "--task", task)
    shown = nvlm_trt(*words)
    assert (shown.code, "the power went off" in shown.err) == (1, True), shown.err
    asked.failing = set()
    assert nvlm_trt(*words).json["figures"]["task"]["samples"] == 2
    assert sorted(small_engine.iterdir()) == before


def test_a_directory_that_is_being_built_is_not_judged(nvlm_trt: Run, small_engine: Path) -> None:
    with locked(small_engine, wait=False):
        shown = nvlm_trt("verify", small_engine)
    told = f"error: another build holds this engine directory; seen: {small_engine}; wait for it\n"
    assert (shown.code, shown.err) == (2, told)


def test_answers_are_kept_for_the_same_engine_and_the_same_tools_alone(
    task: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe({"name": "r", "target": "cpu", "gates": {"task": str(task)}}, "r")

    def place() -> Path | None:
        with _kept_answers(tmp_path, tiny_checkpoint, recipe, Silent()) as work:
            return work

    first = place()
    assert place() == first
    (tmp_path / "config.json").write_text("{}")
    second = place()
    monkeypatch.setattr("nvlm_trt.pipeline.fingerprint.tool_versions", lambda names: dict.fromkeys(names, "2"))
    assert len({first, second, place()}) == 3
