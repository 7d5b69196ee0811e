"""Who is evaluated: what is checked before anything is loaded, what an emulation computes, and what tells it apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.errors import CheckpointError, EngineError, RequestError, UserError
from nvlm_trt.eval.answer import AnswerOptions
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.subjects import engine_subject, server_subject, torch_subject
from nvlm_trt.vision.scales import linear_names

MakeEngine = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (1, 112, 112, 3), np.uint8)


@pytest.fixture
def engine(tmp_path: Path) -> MakeEngine:
    """Makes a directory that holds a recipe and nothing else."""

    def make(vision: str = "bf16", target: str = "gpu", decoder: str = "int4_wo", max_tiles: int = 4) -> Path:
        (tmp_path / "recipe.yaml").write_text(
            f"name: e\ntarget: {target}\nvision_precision: {vision}\ndecoder_precision: {decoder}\n"
            f"max_tiles: {max_tiles}\n"
        )
        return tmp_path

    return make


def calibrate(engine: Path, checkpoint: Checkpoint, amax: float) -> Path:
    """Leaves a calibration of vision of one magnitude for all inputs."""
    file = engine / "vision" / "calibration.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file({name: torch.tensor(amax) for name in linear_names(checkpoint.config)}, file)
    return file


def rows_and_identity(engine: Path, checkpoint: Checkpoint, tiles: np.ndarray) -> tuple[torch.Tensor, str]:
    with torch_subject(engine, "int4_wo", AnswerOptions(), checkpoint=checkpoint.path) as subject:
        assert isinstance(subject.answerer, ReferenceAnswerer)
        return subject.answerer._vision(tiles).float(), subject.identity


@pytest.mark.parametrize("vision", ["fp8", "int8"])
def test_an_emulation_sees_in_the_vision_precision_of_the_recipe(engine, checkpoint, tiles, vision):
    directory = engine(vision)
    file = calibrate(directory, checkpoint, 2.0)
    rows, _ = rows_and_identity(directory, checkpoint, tiles)
    assert torch.equal(rows, VisionArithmetic(checkpoint, vision, file).encoder()(tiles).float())
    assert not torch.equal(rows, VisionArithmetic(checkpoint, "bf16").encoder()(tiles).float())


def test_without_quantisation_it_sees_in_the_recipes_dtype_and_needs_no_calibration(engine, checkpoint, tiles):
    for vision in ("bf16", "fp32"):
        rows, _ = rows_and_identity(engine(vision), checkpoint, tiles)
        assert torch.equal(rows, VisionArithmetic(checkpoint, vision).encoder()(tiles).float())


def test_another_calibration_or_vision_precision_is_another_subject(engine, checkpoint, tiles):
    identities = []
    for vision, amax in (("int8", 2.0), ("int8", 3.0), ("fp8", 3.0), ("bf16", 3.0), ("int8", 2.0)):
        directory = engine(vision)
        calibrate(directory, checkpoint, amax)
        identities.append(rows_and_identity(directory, checkpoint, tiles)[1])
    assert len(set(identities)) == 4
    assert identities[0] == identities[4]


@pytest.mark.parametrize("precision", ["fp32", "int4_wo"])
def test_other_code_or_other_tools_are_another_subject(engine, checkpoint, monkeypatch, precision):
    directory = engine("bf16")

    def identity() -> str:
        with torch_subject(directory, precision, AnswerOptions(), checkpoint=checkpoint.path) as subject:
            return subject.identity

    before = identity()
    assert identity() == before
    monkeypatch.setattr("nvlm_trt.subjects._code", lambda _: "other code")
    other = identity()
    monkeypatch.setattr("nvlm_trt.subjects.tool_versions", lambda _: {"torch": "99"})
    assert len({before, other, identity()}) == 3


def test_a_calibration_that_is_missing_is_told_before_anything_is_opened(engine, checkpoint):
    with pytest.raises(
        EngineError, match=r"vision int8, no vision/calibration\.safetensors .*--until vision-calibrate"
    ):
        torch_subject(engine("int8"), "int4_wo", AnswerOptions(), checkpoint=checkpoint.path)
    with pytest.raises(EngineError, match=r"decoder fp8, .*no decoder/calibration .*--until decoder-calibrate"):
        torch_subject(engine("bf16"), "fp8", AnswerOptions(), checkpoint=checkpoint.path)


def test_a_checkpoint_that_is_not_there_is_told_before_anything_is_opened(engine, tmp_path):
    with pytest.raises(CheckpointError):
        torch_subject(engine(), "fp32", AnswerOptions(), checkpoint=tmp_path / "none")


def test_an_engine_is_checked_by_its_recipe_before_it_is_opened(engine, tmp_path):
    with pytest.raises(EngineError, match="no engine directory"):
        engine_subject(tmp_path / "none", AnswerOptions())
    with pytest.raises(EngineError, match="answers through its server"):
        engine_subject(engine(), AnswerOptions())
    cpu = engine("fp32", "cpu", "fp32", max_tiles=4)
    with pytest.raises(RequestError, match="max_tiles is out of range; seen: 5; expected: 1 to 4"):
        engine_subject(cpu, AnswerOptions(max_tiles=5))
    with pytest.raises(RequestError, match="max_tokens is out of range; seen: 1025; expected: 1 to 1024"):
        engine_subject(cpu, AnswerOptions(max_tokens=1025))
    engine_subject(cpu, AnswerOptions(max_tiles=4, max_tokens=1024))


@pytest.mark.parametrize("url", ["localhost", "localhost:", ":8001", "localhost:0", "a:70000", "http://localhost:8001"])
def test_an_address_of_another_form_is_refused(url):
    with pytest.raises(UserError, match=r"no address of a server; seen: .*; expected: HOST:PORT"):
        server_subject(url, AnswerOptions())


def test_a_server_is_not_reached_before_it_is_asked():
    for url in ("127.0.0.1:1", "[::1]:8001", "triton.example.org:8001"):
        with server_subject(url, AnswerOptions()) as subject:
            assert subject.title == f"server {url}"
    with pytest.raises(UserError, match="writes the tags of tiles itself"):
        server_subject("127.0.0.1:1", AnswerOptions(tags="removed"))
