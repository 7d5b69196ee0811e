"""What is served: a model repository of another version is noticed before a request meets it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from nvlm_trt.errors import EngineError
from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.pipeline.digest import FileDigest
from nvlm_trt.pipeline.manifest import Manifest, StageRecord
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.serving.package import write_repository


@pytest.fixture(params=["cpu", "gpu"])
def packaged(engine_dir: Path, recipe: BuildRecipe, gpu_recipe: BuildRecipe, request: pytest.FixtureRequest) -> Path:
    """An engine directory as this version packages it; the engines themselves are not there."""
    built = recipe if request.param == "cpu" else gpu_recipe
    (engine_dir / "recipe.yaml").write_text(yaml.safe_dump(built.model_dump(mode="json")))
    write_repository(engine_dir, engine_dir / "triton_repo", built)
    return engine_dir


def refusal(engine_dir: Path) -> str:
    with pytest.raises(EngineError) as refused:
        ServedEngine.open(engine_dir).check_repository()
    return str(refused.value)


def test_what_this_version_packaged_is_served(packaged: Path) -> None:
    ServedEngine.open(packaged).check_repository()
    config = packaged / "triton_repo" / "nvlm" / "config.pbtxt"
    config.write_text(f"# read by somebody\n\n{config.read_text()}")  # says the same
    ServedEngine.open(packaged).check_repository()


def test_a_configuration_of_another_version_is_refused_with_what_to_do(packaged: Path) -> None:
    config = packaged / "triton_repo" / "vision_encoder" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "tiles"', 'name: "pixel_values"'))
    said = refusal(packaged)
    assert "packaged by another version" in said
    assert "other configurations of vision_encoder;" in said
    assert f"nvlm-trt build RECIPE --output {packaged}" in said


def test_the_manifest_has_the_command_that_packages_it_again(packaged: Path) -> None:
    record = StageRecord(
        "done", "", {}, "nvlm-trt build my.yaml --from package --until package", "2026-01-01T00:00:00Z"
    )
    Manifest(stages={"package": record}).save(packaged)
    (packaged / "triton_repo" / "nvlm" / "config.pbtxt").unlink()
    assert refusal(packaged).endswith("package it again: nvlm-trt build my.yaml --from package --until package")


def test_engines_that_were_built_again_since_they_were_packaged_are_refused(packaged: Path) -> None:
    engine = StageRecord("done", "", {}, "", "", outputs=(FileDigest("decoder/engine", 1, "0" * 64),))
    package = StageRecord("done", "", {"inputs": {"decoder-compile": engine.outputs_digest}}, "nvlm-trt build my", "")
    standing = Manifest(stages={"decoder-compile": engine, "package": package})

    def refused(name: str, record: StageRecord) -> str:
        standing.with_stage(name, record).save(packaged)
        return refusal(packaged)

    standing.save(packaged)
    ServedEngine.open(packaged)
    another = dataclasses.replace(engine, outputs=())
    told = "the engine directory is not complete: stage {}; run nvlm-trt build my"
    assert refused("decoder-compile", another) == told.format("decoder-compile was run again after it was packaged")
    stopped = dataclasses.replace(engine, state="running")
    assert refused("decoder-compile", stopped) == told.format("decoder-compile is running, or was stopped")
    assert refused("verify", dataclasses.replace(engine, state="failed")) == told.format("verify failed")


def test_whoever_packages_by_hand_is_not_asked_for_gates(packaged: Path) -> None:
    Manifest(stages={"verify": StageRecord("failed", "", {}, "", "")}).save(packaged)
    ServedEngine.open(packaged)


@pytest.mark.parametrize("text", ["no configuration", 'name: "nvlm" field_of_tomorrow: 1'])
def test_what_cannot_be_read_is_of_another_version(packaged: Path, text: str) -> None:
    (packaged / "triton_repo" / "nvlm" / "config.pbtxt").write_text(text)
    assert "other configurations of nvlm;" in refusal(packaged)


def test_a_model_that_this_version_does_not_have_is_of_another_version(packaged: Path) -> None:
    (packaged / "triton_repo" / "captioner").mkdir()
    assert "other configurations of captioner;" in refusal(packaged)


def test_a_recipe_that_was_changed_after_the_build_is_noticed(packaged: Path) -> None:
    recipe = packaged / "recipe.yaml"
    changed = {**yaml.safe_load(recipe.read_text()), "max_images": 1}
    recipe.write_text(yaml.safe_dump(changed))
    assert "its recipe was changed" in refusal(packaged)
