"""Whole engines of each precision against the reference, and engines with defects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.errors import EngineError, VerificationError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.recipe import load_recipe, parse_recipe
from nvlm_trt.verify.engine import verify_engine
from nvlm_trt.verify.yardstick import reduced_decoder
from nvlm_trt.vision.runner import VisionRunner

FIELDS = {"target": "cpu", "max_batch_size": 2, "max_input_len": 512, "max_output_len": 64, "tp": 2}
WORK = {"verify_prompts": 3, "verify_tokens": 6}


@pytest.fixture(scope="session")
def engine_of(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Engines by vision and decoder precision, built up to decoder-compile with two ranks, once each."""
    made: dict[tuple[str, str], Path] = {}

    def build_once(vision: str, decoder: str) -> Path:
        if (vision, decoder) not in made:
            folder = tmp_path_factory.mktemp("engines")
            recipe = folder / "small.yaml"
            fields = {**FIELDS, **WORK, "vision_precision": vision, "decoder_precision": decoder}
            recipe.write_text(yaml.safe_dump(fields))
            engine = folder / "engine"
            build(BuildRequest(str(recipe), tiny_checkpoint, engine, Selection("decoder-compile")), Silent())
            made[vision, decoder] = engine
        return made[vision, decoder]

    return build_once


@pytest.mark.parametrize(("vision", "decoder"), [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "int8_wo")])
def test_a_sound_engine_passes_every_gate(
    engine_of: Callable[[str, str], Path], tiny_checkpoint: Path, vision: str, decoder: str
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
    engine_of: Callable[[str, str], Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 engine whose logits are a little off stays far below one bad token, and fails all the same."""
    engine = engine_of("bf16", "int8_wo")
    run, noise = DecoderSession.run, np.random.default_rng(1)

    def noisy(self: DecoderSession, parts: object) -> np.ndarray:
        logits = run(self, parts).copy()
        return logits + noise.normal(0, 0.3 * logits.std(), logits.shape).astype(np.float32)

    monkeypatch.setattr(DecoderSession, "run", noisy)
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    assert {check.gate.figure for check in report.checks if not check.ok} >= {"excess"}
    with pytest.raises(VerificationError, match="decoder excess"):
        report.require_ok()


def test_tiles_in_another_order_are_noticed(
    engine_of: Callable[[str, str], Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("fp32", "fp32")
    encode = VisionRunner.encode
    monkeypatch.setattr(VisionRunner, "encode", lambda self, tiles: encode(self, tiles[::-1]))
    report = verify_engine(engine, tiny_checkpoint, load_recipe(engine / "recipe.yaml"))
    failed = {(check.part, check.gate.figure) for check in report.checks if not check.ok}
    assert ("vision", "max_rel_error") in failed
    assert ("answer", "tokens_differing") in failed
    assert ("decoder", "max_rel_error") not in failed  # it was given the reference's own tables


def test_engines_of_the_gpu_target_and_engines_without_room_are_refused(
    engine_of: Callable[[str, str], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="only engines of the cpu target"):
        verify_engine(tmp_path, tiny_checkpoint, parse_recipe({"name": "x", "target": "gpu"}, "x"))
    engine = engine_of("fp32", "fp32")
    recipe = load_recipe(engine / "recipe.yaml").model_copy(update={"max_input_len": 3})
    with pytest.raises(EngineError, match="too short for any question"):
        verify_engine(engine, tiny_checkpoint, recipe)


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
