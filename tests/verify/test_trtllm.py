"""Engine directories of the gpu target, judged without a GPU."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nvlm_trt.calibration.prompts import build_prompts
from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, read_samples
from nvlm_trt.decoder.calibrate import calibrate_decoder
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.engine_files import DECODER_CALIBRATION, VISION_CALIBRATION
from nvlm_trt.environment.memory import Memory
from nvlm_trt.errors import CheckpointError, EngineError
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.pipeline.stages import calibrate
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.verify import sharded, trtllm
from nvlm_trt.verify.sharded import Prompt
from nvlm_trt.verify.trtllm import verify_trtllm
from nvlm_trt.vision.quantize import calibrate_vision

from .thread_ranks import emulated

pytestmark = pytest.mark.usefixtures("one_thread_an_operation")

LAST = "transformer.layers.2."

RANDOM_WEIGHTS = {"logit_kl": 4.0, "top1_agreement": 0.0}
"""Bounds for tests of a sound conversion: answers of random weights do not survive quantised activations or 4 bits."""

Change = Callable[[dict[str, torch.Tensor]], None]
Damaged = Callable[[str, Change], Path]


def recipe_of(precision: str, **fields: object) -> BuildRecipe:
    shapes = {"max_input_len": 512, "max_output_len": 64, "tp": 2, "verify_prompts": 2, "verify_tokens": 4}
    engine = {"awq_group_size": 64}
    raw = {"name": "small", "target": "gpu", "decoder_precision": precision, "decoder_engine": engine}
    return parse_recipe(raw | shapes | fields, "small")


@pytest.fixture(scope="module")
def engine_of(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Engine directories as far as they are read, by decoder precision, with two ranks."""
    root = tmp_path_factory.mktemp("engines")
    checkpoint = Checkpoint.open(tiny_checkpoint)
    samples = read_samples(SHIPPED_SAMPLES, 24)
    tokenizer = NvlmTokenizer.load(tiny_checkpoint)
    prompts = build_prompts(samples, tokenizer, checkpoint.config, max_tokens=64, max_tiles=1)

    def make(name: str) -> Path:
        engine = root / name
        if not engine.exists():
            precision = decoder_precision(name, group_size=64)
            calibration, out = engine / DECODER_CALIBRATION, engine / "decoder" / "checkpoint"
            if precision.needs_calibration:
                calibrate_decoder(checkpoint, prompts, calibration, engine / "work", precision=precision)
            convert_decoder(checkpoint, out, tp=2, pp=1, precision=precision, calibration=calibration)
            shutil.copytree(tiny_checkpoint, engine / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
        return engine

    return make


@pytest.fixture
def damaged(engine_of: Callable[[str], Path], tmp_path: Path) -> Damaged:
    """A copy of an engine directory whose second rank was changed."""

    def damage(name: str, change: Change) -> Path:
        engine = tmp_path / name
        shutil.rmtree(engine, ignore_errors=True)
        shutil.copytree(engine_of(name), engine)
        file = engine / "decoder" / "checkpoint" / "rank1.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
        return engine

    return damage


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are threads: the same arithmetic without the start of processes."""

    def run(directory: Path, prompts: Sequence[Prompt], *, timeout: float) -> list[torch.Tensor]:
        return [logits.float() for logits in emulated(directory, prompts)]

    monkeypatch.setattr(sharded, "run_sharded", run)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot run the ranks."""
    monkeypatch.setattr(trtllm, "memory", lambda: Memory(0, 0))


def test_a_sound_engine_passes_every_gate_with_a_process_a_rank(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path
) -> None:
    report = verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16"))
    report.require_ok()
    assert report.figures["ranks"]["max_rel_error"] < 1e-5
    assert "excess" not in report.figures["ranks"]


@pytest.mark.parametrize("precision", ["fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq"])
def test_a_sound_quantised_engine_passes_every_gate(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path, threads: None, precision: str
) -> None:
    told: list[str] = []
    recipe = recipe_of(precision, gates=RANDOM_WEIGHTS)
    report = verify_trtllm(engine_of(precision), tiny_checkpoint, recipe, log=told.append)
    report.require_ok()
    assert report.figures["prompt"] == {"faults": 0, "cases": 2}
    assert report.figures["ranks"]["ranks"] == 2
    assert 0.5 < report.figures["ranks"]["excess"] < 2
    assert {check.part for check in report.checks} == {"prompt", "vision", "layers", "ranks", "logits", "canary"}
    assert report.figures["canary"]["canaries"] == 1
    assert any("an emulation's" in remark for remark in report.remarks)
    assert "decoder: 2 ranks together over gloo" in told


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path, photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question about a photograph whose right answer is what the random reference says to it."""
    folder = tmp_path_factory.mktemp("task")
    photographs["coffee"].resize((120, 112)).save(folder / "a.png")
    line = {"id": "1", "images": ["a.png"], "question": "What?", "answers": ["?"], "metric": "exact", "max_tokens": 3}
    (folder / "task.jsonl").write_text(json.dumps(line))
    answerer = ReferenceAnswerer(tiny_checkpoint, recipe=recipe_of("bf16"))
    line["answers"] = [answerer.answer(read_tasks(folder / "task.jsonl")[0]).text]
    (folder / "task.jsonl").write_text(json.dumps(line))
    return folder / "task.jsonl"


def test_quantised_vision_and_answers_to_a_task_are_emulated(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path, threads: None, task: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(engine_of("int8_wo"), engine)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    tiles = np.random.default_rng(4).integers(0, 256, (4, 112, 112, 3)).astype(np.uint8)
    (engine / "vision").mkdir()
    calibrate_vision(checkpoint, tiles, engine / VISION_CALIBRATION, work_dir=tmp_path / "work")
    gates = {"task": str(task), "task_accuracy_drop": 0}
    recipe = recipe_of("int8_wo", vision_precision="int8", gates=gates)
    report = verify_trtllm(engine, tiny_checkpoint, recipe, sensitivity=True)
    assert report.figures["task"]["reference_accuracy"] == 1.0
    assert report.figures["task"]["samples"] == 1
    assert 1e-4 < report.figures["vision"]["mean_cosine_distance"] < 5e-3
    assert {check.part for check in report.checks} >= {"vision", "logits", "canary", "task"}
    assert [each.name for each in report.costs] == [
        *(f"vision layer {index}" for index in range(checkpoint.config.vision.num_layers)),
        "projector",
        *(f"decoder layer {index}" for index in range(3)),
    ]
    assert all(each.kl > 0 for each in report.costs)
    assert len(report.layers) == 3


def test_a_precision_that_costs_too_much_names_layers_or_says_that_none_will_do(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path, threads: None
) -> None:
    report = verify_trtllm(engine_of("int4_wo"), tiny_checkpoint, recipe_of("int4_wo"))
    assert {(check.part, check.gate.figure) for check in report.checks if not check.ok} >= {
        ("logits", "mean_kl_divergence")
    }
    assert len(report.costs) == 3
    if report.excluded:
        assert report.changes == ("decoder_precision: int8_wo",)
    else:
        assert any("take a precision with more bits" in remark for remark in report.remarks)
    assert any("each layer quantised alone" in line for line in report.lines())


def double_a_scale(rank: dict[str, torch.Tensor]) -> None:
    rank[f"{LAST}mlp.proj.weights_scaling_factor"] *= 2


def swap_fc_and_gate(rank: dict[str, torch.Tensor]) -> None:
    fc, gate = f"{LAST}mlp.fc.weight", f"{LAST}mlp.gate.weight"
    rank[fc], rank[gate] = rank[gate], rank[fc]


def roll_a_weight(rank: dict[str, torch.Tensor]) -> None:
    rank[f"{LAST}attention.dense.weight"] = rank[f"{LAST}attention.dense.weight"].roll(1, dims=0)


def swap_nibbles(rank: dict[str, torch.Tensor]) -> None:
    codes = rank[f"{LAST}mlp.fc.weight"].view(torch.uint8)
    rank[f"{LAST}mlp.fc.weight"] = ((codes << 4) | (codes >> 4)).view(torch.int8)


def poison_a_scale(rank: dict[str, torch.Tensor]) -> None:
    rank[f"{LAST}attention.qkv.weights_scaling_factor"][0] = float("nan")


@pytest.mark.parametrize(
    ("precision", "change"),
    [
        ("fp8", double_a_scale),
        ("fp8", swap_fc_and_gate),
        ("fp8", poison_a_scale),
        ("int8_sq", double_a_scale),
        ("int8_sq", roll_a_weight),
        ("int4_awq", double_a_scale),
        ("int4_awq", swap_nibbles),
        ("int4_awq", swap_fc_and_gate),
    ],
)
def test_a_wrong_weight_of_one_rank_is_found_whatever_the_memory(
    damaged: Damaged, tiny_checkpoint: Path, no_memory: None, precision: str, change: Change
) -> None:
    sound = verify_trtllm(damaged(precision, lambda rank: None), tiny_checkpoint, recipe_of(precision))
    assert sound.ok
    report = verify_trtllm(damaged(precision, change), tiny_checkpoint, recipe_of(precision))
    assert {check.part for check in report.checks if not check.ok} == {"layers"}


def shrink_the_range_of_inputs(rank: dict[str, torch.Tensor]) -> None:
    for layer in range(3):
        rank[f"transformer.layers.{layer}.attention.qkv.activation_scaling_factor"] /= 30


@pytest.mark.parametrize(
    ("precision", "change", "parts"),
    [
        ("bf16", swap_fc_and_gate, {"layers", "ranks", "logits"}),
        ("int8_sq", shrink_the_range_of_inputs, {"layers", "ranks", "logits"}),
    ],
)
def test_a_gross_defect_shows_in_the_logits_too(
    damaged: Damaged, tiny_checkpoint: Path, threads: None, precision: str, change: Change, parts: set[str]
) -> None:
    report = verify_trtllm(damaged(precision, change), tiny_checkpoint, recipe_of(precision))
    assert {check.part for check in report.checks if not check.ok} == parts


def test_a_missing_tensor_is_found_in_the_headers(damaged: Damaged, tiny_checkpoint: Path) -> None:
    def lose(rank: dict[str, torch.Tensor]) -> None:
        del rank["transformer.ln_f.weight"]

    with pytest.raises(CheckpointError, match=r"rank1\.safetensors: missing transformer\.ln_f\.weight"):
        verify_trtllm(damaged("bf16", lose), tiny_checkpoint, recipe_of("bf16"))


def test_ranks_too_large_for_the_memory_are_not_run_and_the_report_says_so(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path, no_memory: None
) -> None:
    report = verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16", verify_prompts=1))
    assert report.ok
    assert {check.part for check in report.checks} == {"prompt", "vision", "layers"}
    assert "ranks" not in report.figures
    assert any("The ranks were not run together" in remark for remark in report.remarks)


def test_ranks_beyond_what_a_cpu_runs_are_not_run_however_much_memory_there_is(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtllm, "MOST_BYTES", 1 << 20)
    report = verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16"))
    assert "ranks" not in report.figures
    assert any("at most 0.0 GiB are run on a CPU" in remark for remark in report.remarks)


def test_the_memory_is_that_of_one_layer_of_the_release_whatever_their_number() -> None:
    config = planned_shapes(None).config
    estimate = trtllm.peak_bytes(config, recipe_of("fp8"))
    more = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=800))
    assert trtllm.peak_bytes(more, recipe_of("fp8")) == estimate
    assert 7.5 * (1 << 30) < estimate < 10 * (1 << 30)  # 7.5 GiB were measured for one layer at these widths


def test_calibrations_are_looked_for_where_the_stages_leave_them() -> None:
    assert calibrate.VISION_CALIBRATION == VISION_CALIBRATION
    assert calibrate.DECODER_CALIBRATION == DECODER_CALIBRATION


def test_it_runs_where_openvino_is_not_installed() -> None:
    """As in the pinned image."""
    lines = "import sys; sys.modules['openvino'] = None; import nvlm_trt.verify.trtllm, nvlm_trt.verify.golden"
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_an_engine_that_is_not_what_the_recipe_says_is_refused(
    engine_of: Callable[[str], Path], tiny_checkpoint: Path
) -> None:
    with pytest.raises(EngineError, match="only engines of the gpu target"):
        verify_trtllm(engine_of("bf16"), tiny_checkpoint, parse_recipe({"name": "x", "target": "cpu"}, "x"))
    with pytest.raises(EngineError, match=r"not what the recipe asks for.*quant_algo': None.*'FP8'"):
        verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("fp8"))
    with pytest.raises(EngineError, match=r"not what the recipe asks for.*seen: tp 2.*expected: tp 4"):
        verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16", tp=4))
    with pytest.raises(EngineError, match="too short for any question"):
        verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16", max_input_len=3))
    with pytest.raises(EngineError, match="too short for an image"):
        verify_trtllm(engine_of("bf16"), tiny_checkpoint, recipe_of("bf16", max_input_len=60))
