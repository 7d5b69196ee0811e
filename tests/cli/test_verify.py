"""`nvlm-trt verify` on engine directories of both targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.errors import FaultError
from nvlm_trt.eval.answer import Answer, EngineAnswerer
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent

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
    build(BuildRequest(str(recipe), tiny_checkpoint, engine, Selection(until="decoder-convert")), Silent())
    return engine


def test_an_engine_directory_of_the_gpu_target_is_judged_without_a_gpu(nvlm_trt: Run, gpu_engine: Path) -> None:
    shown = nvlm_trt("verify", gpu_engine, "--prompts", 1)
    assert shown.code == 0, shown.out
    assert "Engines were not run" in shown.out
    written = json.loads((gpu_engine / "verify.json").read_text())
    assert {check["part"] for check in written["checks"]} >= {"prompt", "layers", "ranks"}


def test_layers_and_what_they_cost_are_shown_when_asked_for(nvlm_trt: Run, small_engine: Path) -> None:
    plain = nvlm_trt("verify", small_engine, "--prompts", 2, "--tokens", 3)
    assert "<- worst" not in plain.out
    assert ">= 1" in plain.out  # top1_agreement of fp32
    shown = nvlm_trt("verify", small_engine, "--prompts", 2, "--tokens", 3, "--layers")
    assert shown.out.count("<- worst") == 2


def test_a_task_can_be_named_and_a_run_that_stopped_goes_on_after_its_last_answer(
    nvlm_trt: Run, small_engine: Path, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"images": [str(photograph)], "question": "What?", "answers": ["a"], "metric": "exact", "max_tokens": 2}
    lines = [json.dumps({"id": name} | line) for name in ("first", "second")]
    (tmp_path / "task.jsonl").write_text("\n".join(lines))
    asked: list[str] = []
    answer, stops = EngineAnswerer.answer, ["second"]

    def stopping(self: EngineAnswerer, sample: Sample) -> Answer:
        asked.append(sample.id)
        if sample.id in stops:
            raise FaultError("the power went off")
        return answer(self, sample)

    monkeypatch.setattr(EngineAnswerer, "answer", stopping)
    words = ("verify", small_engine, "--prompts", 1, "--tokens", 2, "--json")
    stopped = nvlm_trt(*words, "--task", tmp_path / "task.jsonl")
    assert (stopped.code, asked) == (1, ["first", "second"])
    (kept,) = small_engine.glob(".verify-task.*.work")
    stale = kept.with_name(".verify-task.0123.work")
    stale.mkdir()
    stops.clear()
    facts = nvlm_trt(*words, "--task", tmp_path / "task.jsonl").json
    assert facts["figures"]["task"]["samples"] == 2
    assert asked == ["first", "second", "second"]
    assert not kept.exists()
    assert not stale.exists()
    shown = nvlm_trt(*words, "--task", tmp_path / "absent.jsonl")
    assert shown.code == 2
    assert "the task cannot be read" in shown.err
