"""Whole engines of each precision against the reference, and engines with defects."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.errors import EngineError, VerificationError
from nvlm_trt.eval.answer import AnswerOptions
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.recipe import BuildRecipe, load_recipe, parse_recipe
from nvlm_trt.verify.engine import verify_engine
from nvlm_trt.verify.report import short
from nvlm_trt.verify.sharded_report import PromptAgreement, ShardedReport
from nvlm_trt.verify.yardstick import reduced_decoder
from nvlm_trt.vision.encoder import TileEncoder
from nvlm_trt.vision.runner import VisionRunner

FIELDS = {"target": "cpu", "max_batch_size": 2, "max_input_len": 512, "max_output_len": 64, "tp": 2, "cpu_threads": 1}
WORK = {"verify_prompts": 3, "verify_tokens": 6}


@pytest.fixture(scope="session")
def engine_of(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Engines by vision and decoder precision, built up to decoder-compile with two ranks, once each."""
    made: dict[tuple[object, ...], Path] = {}

    def build_once(vision: str, decoder: str, *exclude: int) -> Path:
        key = (vision, decoder, *exclude)
        if key not in made:
            folder = tmp_path_factory.mktemp("engines")
            recipe = folder / "small.yaml"
            fields = {**FIELDS, **WORK, "vision_precision": vision, "decoder_precision": decoder}
            fields["exclude_layers"] = list(exclude)
            recipe.write_text(yaml.safe_dump(fields))
            engine = folder / "engine"
            build(BuildRequest(str(recipe), tiny_checkpoint, engine, Selection("decoder-compile")), Silent())
            made[key] = engine
        return made[key]

    return build_once


@pytest.mark.parametrize(("vision", "decoder"), [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "int8_wo")])
def test_a_sound_engine_passes_every_gate(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, vision: str, decoder: str
) -> None:
    engine = engine_of(vision, decoder)
    told: list[str] = []
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"), log=told.append)
    report.require_ok()
    assert report.figures["sharded"]["ranks"] == 2
    assert report.figures["prompt"]["cases"] == 3
    assert told[-1] == "sharded: 2 ranks over gloo"
    again = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    assert again.encoded() == report.encoded()
    if decoder == "fp32":
        assert report.figures["decoder"]["tokens_differing"] == report.figures["answer"]["tokens_differing"] == 0
    else:
        assert json.loads(report.encoded())["figures"]["decoder"]["torch_mean_cosine_distance"] > 0


def test_rounding_is_no_excuse_for_a_defect(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 engine whose logits are a little off stays far below one bad token, and fails all the same."""
    engine = engine_of("bf16", "int8_wo")
    run, noise = DecoderSession.run, np.random.default_rng(1)

    def noisy(self: DecoderSession, *step: object) -> np.ndarray:
        logits = run(self, *step).copy()
        return logits + noise.normal(0, 0.3 * logits.std(), logits.shape).astype(np.float32)

    monkeypatch.setattr(DecoderSession, "run", noisy)
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    assert {check.gate.figure for check in report.checks if not check.ok} >= {"excess"}
    with pytest.raises(VerificationError, match="decoder excess"):
        report.require_ok()


def test_tiles_in_another_order_are_noticed(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("fp32", "fp32")
    for kind in (VisionRunner, TileEncoder):
        encode = kind.encode
        monkeypatch.setattr(kind, "encode", lambda self, tiles, *rest, encode=encode: encode(self, tiles[::-1], *rest))
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    failed = {(check.part, check.gate.figure) for check in report.checks if not check.ok}
    assert ("vision", "max_rel_error") in failed
    assert ("answer", "tokens_differing") in failed
    assert ("decoder", "max_rel_error") not in failed  # it was given the reference's own tables


@pytest.fixture(scope="session")
def task(tiny_checkpoint: Path, photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about photographs whose right answers are what the random reference says to them."""
    folder = tmp_path_factory.mktemp("task")
    recipe = parse_recipe({"name": "task", **FIELDS}, "task")
    answerer = ReferenceAnswerer(tiny_checkpoint, options=AnswerOptions(max_tokens=4), recipe=recipe)
    lines = []
    for number, name in enumerate(("chelsea", "coffee", "astronaut")):
        photographs[name].resize((120, 100 + 40 * number)).save(folder / f"{name}.png")
        line = {"id": name, "images": [f"{name}.png"], "question": "What?", "answers": ["?"], "metric": "exact"}
        file = folder / "task.jsonl"
        file.write_text(json.dumps(line | {"max_tokens": 4}))
        lines.append({**line, "max_tokens": 4, "answers": [answerer.answer(read_tasks(file)[0]).text]})
    (folder / "task.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "task.jsonl"


@pytest.fixture
def ranks_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of the converted ranks, which other tests judge, left out."""
    found = ShardedReport(2, 1, (PromptAgreement(1, 0.0, 1.0, 0.0, 0.0),))
    monkeypatch.setattr("nvlm_trt.verify.engine.precision_distance", lambda *_args, **_kwargs: found)


def with_gates(engine: Path, **gates: object) -> BuildRecipe:
    recipe = load_recipe(engine / "recipe.yaml")
    return recipe.model_copy(update={"gates": recipe.gates.model_copy(update=gates)})


def test_a_task_is_answered_by_engine_and_reference_and_its_images_are_canaries(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, ranks_aside: None, task: Path, tmp_path: Path
) -> None:
    engine = engine_of("fp32", "fp32")
    report = verify_engine(engine, tiny_checkpoint, with_gates(engine, task=str(task)), work=tmp_path)
    report.require_ok()
    assert report.figures["task"] == {
        "samples": 3,
        "accuracy": 1.0,
        "reference_accuracy": 1.0,
        "accuracy_drop": 0.0,
        "answers_differing": 0,
        "samples_refused": 0,
    }
    assert report.figures["canary"]["canaries"] == 2 + 3
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "reference"}  # a killed run goes on from these


def test_an_engine_that_shuffles_its_tiles_loses_points_and_is_told_so(
    engine_of: Callable[..., Path],
    tiny_checkpoint: Path,
    ranks_aside: None,
    task: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of("bf16", "bf16")
    encode = VisionRunner.encode
    monkeypatch.setattr(VisionRunner, "encode", lambda self, tiles, *rest: encode(self, tiles, *rest)[:, ::-1])
    report = verify_engine(engine, tiny_checkpoint, with_gates(engine, task=str(task)))
    failed = {(check.part, check.gate.figure) for check in report.checks if not check.ok}
    assert ("task", "accuracy_drop") in failed
    assert ("logits", "mean_kl_divergence") in failed
    assert report.figures["task"]["accuracy_drop"] >= 33.3


def test_a_layer_with_a_defect_is_named(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, ranks_aside: None, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(engine_of("fp32", "fp32"), engine)
    file = engine / "decoder" / "cpu" / "model.bin"
    weight = Checkpoint.open(tiny_checkpoint).read("language_model.model.layers.1.mlp.up_proj.weight", torch.float32)
    stored = weight.numpy().tobytes()
    content = file.read_bytes()
    assert content.count(stored) == 1
    file.write_bytes(content.replace(stored, weight.flip(0).numpy().tobytes()))
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    with pytest.raises(VerificationError, match=r"worst: .*decoder layer 1 \(after"):
        report.require_ok()
    decoder = [each for each in report.layers if each.part == "decoder"]
    assert decoder[1].error > 0.1
    assert all(each.error < 1e-4 for each in report.layers if each is not decoder[1])
    assert "<- worst" in "\n".join(report.lines())
    row = {"part": "decoder", "layer": 1, "worst": "after", "error": short(decoder[1].error), "yardstick": None}
    assert row in json.loads(report.encoded())["layers"]


def test_a_precision_that_costs_too_much_names_the_layers_to_leave_out(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, ranks_aside: None
) -> None:
    engine = engine_of("bf16", "int8_wo")
    sound = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"), sensitivity=True)
    assert [each.name for each in sound.costs] == [f"decoder layer {index}" for index in range(3)]
    assert all(each.kl > 1e-5 for each in sound.costs)
    assert sound.excluded == ()
    kl = sound.figures["logits"]["mean_kl_divergence"]
    report = verify_engine(engine, tiny_checkpoint, with_gates(engine, logit_kl=0.7 * kl))
    costs = sorted(report.costs, key=lambda each: -each.kl)
    assert report.excluded == (costs[0],)
    (layer,) = (each.layer for each in report.excluded)
    line = rf"exclude_layers: \[{layer}\]"
    assert any(re.search(rf"{costs[0].name} cost .*In the recipe: {line}", remark) for remark in report.remarks)
    with pytest.raises(VerificationError, match=f"mean_kl_divergence.*change the recipe: {line}"):
        report.require_ok()
    without = engine_of("bf16", "int8_wo", layer)
    better = verify_engine(without, tiny_checkpoint, load_recipe(without / "recipe.yaml"), sensitivity=True)
    better.require_ok()
    assert better.figures["decoder"]["mean_cosine_distance"] < sound.figures["decoder"]["mean_cosine_distance"]
    assert [each.layer for each in better.costs] == [index for index in range(3) if index != layer]
    errors = {each.layer: each.error for each in better.layers if each.part == "decoder"}
    assert errors[layer] < 2**-8  # the rounding of bfloat16
    assert all(error > 2**-8 for index, error in errors.items() if index != layer)


def test_engines_of_the_gpu_target_and_engines_without_room_are_refused(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="only engines of the cpu target"):
        verify_engine(tmp_path, tiny_checkpoint, parse_recipe({"name": "x", "target": "gpu"}, "x"))
    engine = engine_of("fp32", "fp32")
    recipe = load_recipe(engine / "recipe.yaml").model_copy(update={"max_input_len": 3})
    with pytest.raises(EngineError, match="too short for any question"):
        verify_engine(engine, tiny_checkpoint, recipe)
    recipe = load_recipe(engine / "recipe.yaml").model_copy(update={"max_input_len": 60, "verify_prompts": 3})
    with pytest.raises(EngineError, match=r"too short for an image.*seen: 60 tokens.*raise max_input_len"):
        verify_engine(engine, tiny_checkpoint, recipe)


def test_vision_and_answers_about_images_are_judged_however_few_prompts_there_are(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, ranks_aside: None
) -> None:
    engine = engine_of("fp32", "fp32")
    recipe = load_recipe(engine / "recipe.yaml").model_copy(update={"verify_prompts": 1})
    report = verify_engine(engine, tiny_checkpoint, recipe)
    report.require_ok()
    assert {check.part for check in report.checks} >= {"vision", "logits", "canary"}


def test_4_bit_weights_are_judged_by_torch_with_the_same_groups(
    engine_of: Callable[..., Path], tiny_checkpoint: Path, ranks_aside: None
) -> None:
    """Random weights do not bear them: what is sound here is the engine, not the answers."""
    engine = engine_of("bf16", "int4_wo")
    recipe = with_gates(engine, logit_kl=8.0, top1_agreement=0.0, logit_distance=1.0)
    report = verify_engine(engine, tiny_checkpoint, recipe, sensitivity=True)
    report.require_ok()
    assert 0.9 < report.figures["decoder"]["excess"] < 1.1
    assert all(each.kl > 1e-3 for each in report.costs)


def test_the_yardstick_rounds_matrices_and_nothing_else(opened: Checkpoint) -> None:
    assert reduced_decoder(opened, "fp32") is None
    exact, rounded = opened, reduced_decoder(opened, "int8_wo")
    assert rounded is not None
    for name, kept in (("model.embed_tokens.weight", True), ("model.norm.weight", True), ("lm_head.weight", False)):
        name = f"language_model.{name}"
        assert torch.equal(rounded._weights[name], exact.read(name, torch.float32)) is kept
    head = exact.read("language_model.lm_head.weight", torch.float32)
    step = head.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded._weights["language_model.lm_head.weight"] - head).abs() <= step * 0.501).all())
