"""Recipes are frozen and typed; what is unknown or out of range is refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from nvlm_trt.errors import NvlmTrtError, RecipeError, UserError
from nvlm_trt.recipe import BuildRecipe, load_recipe, parse_recipe

MINIMAL: dict[str, object] = {"name": "r", "target": "cpu"}


def test_a_recipe_is_named_after_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mini-cpu.yaml"
    file.write_text("target: cpu\ntp: 2\n")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.tp, recipe.max_tiles) == ("mini-cpu", 2, 6)
    with pytest.raises(Exception, match="frozen"):
        recipe.tp = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tile": 6}, "unknown field max_tile, did you mean max_tiles?"),
        ({"zzz": 6}, "unknown field zzz; known: name, target"),
        ({"image_limits": {"max_byte": 1}}, "unknown field image_limits.max_byte, did you mean max_bytes?"),
        ({"decoder_engine": {"worker": 1}}, "unknown field decoder_engine.worker, did you mean workers?"),
        ({"calibration": {"count": 0}}, "calibration.count"),
        ({"max_tiles": 13}, "max_tiles"),
        ({"max_tiles": "many"}, "'many'"),
        ({"tp": 0}, "tp"),
        ({"max_batch_size": True}, "max_batch_size: Input should be no boolean, seen: True"),
        ({"exclude_layers": [True]}, "exclude_layers: Input should be no boolean, seen: [True]"),
        ({"gates": {"logit_kl": math.inf}}, "gates.logit_kl: Input should be a finite number, seen: inf"),
        ({"gates": {"logit_kl": True}}, "gates.logit_kl: Input should be no boolean"),
        (
            {"vision_engine": {"workspace_gib": math.nan}},
            "vision_engine.workspace_gib: Input should be a finite number",
        ),
        ({"target": "tpu"}, "'gpu' or 'cpu'"),
        ({"name": "../escape"}, "name"),
        ({"vision_precision": "fp8"}, "vision_precision fp8 is for gpu; cpu has fp32, bf16"),
        ({"decoder_precision": "int4_awq"}, "cpu has fp32, bf16, int8_wo"),
        ({"target": "gpu", "decoder_precision": "fp32"}, "fp32 is for cpu"),
        ({"target": "gpu", "decoder_precision": "int8"}, "int8 is for cpu; TensorRT-LLM has int8_sq"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | change, "r.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml")


def test_a_field_that_is_given_twice_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("target: cpu\ngates:\n  logit_kl: 1\n  logit_kl: 2\n")
    with pytest.raises(RecipeError, match=r"cannot be read \(logit_kl is given twice, again in line 4\)"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "r.yaml")


def test_an_error_says_what_was_seen_what_was_expected_and_what_to_do() -> None:
    error = UserError("the pot is cold", seen=3, expected=95, fix="heat it")
    assert str(error) == "the pot is cold; seen: 3; expected: 95; heat it"
    assert (error.exit_code, NvlmTrtError("x").exit_code) == (2, 1)


def test_layers_can_be_left_out_of_quantisation_only_where_something_is_quantised() -> None:
    recipe = parse_recipe({"name": "x", "target": "cpu", "decoder_precision": "int8_wo", "exclude_layers": [3, 1]}, "x")
    assert recipe.model_dump(mode="json")["exclude_layers"] == [1, 3]
    for fields in ({"target": "cpu", "decoder_precision": "bf16"}, {"target": "gpu", "decoder_precision": "fp8"}):
        with pytest.raises(RecipeError, match=r"exclude_layers is for quantised decoders of cpu, seen: \[1\]"):
            parse_recipe({"name": "x", **fields, "exclude_layers": [1]}, "x")


def test_the_default_recipe_holds_every_field() -> None:
    """It is where they are explained; the name stands in a comment, for a copy of the file gets its own."""
    text = Path("build/recipes/nvlm-d-mini-cpu.yaml").read_text().replace("# name:", "name:")
    fields = yaml.safe_load(text)
    assert fields.keys() == BuildRecipe.model_fields.keys()
    for name, value in fields.items():
        if isinstance(value, dict):
            group = BuildRecipe.model_fields[name].annotation
            assert value.keys() == group.model_fields.keys()  # type: ignore[union-attr]
