"""Where an engine directory keeps what: a recipe is read from there, and what answers hang on is a part of a build."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nvlm_trt import engine_files
from nvlm_trt.engine_files import ENGINE_FILES, SERVED_FILES, engine_recipe
from nvlm_trt.errors import EngineError
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stages import build_plan
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import BuildRecipe

from .unbuilt_engine import on_gpus, small_recipe


def test_the_recipe_is_read_from_the_directory_and_another_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="this is no engine directory"):
        engine_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe().model_dump(mode="json")))
    assert engine_recipe(tmp_path) == small_recipe()


@pytest.mark.parametrize("recipe", [small_recipe(), on_gpus(small_recipe())], ids=["cpu", "gpu"])
def test_what_is_served_is_what_stages_leave(recipe: BuildRecipe) -> None:
    left = {place for stage in build_plan(Sources(recipe, planned_shapes(None), None)) for place in stage.outputs}
    assert {*SERVED_FILES[recipe.target], engine_files.RECIPE, engine_files.REPOSITORY} <= left
    assert recipe.target == "gpu" or set(ENGINE_FILES) <= left
