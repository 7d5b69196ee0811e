"""The model repositories of the shipped recipes, every config.pbtxt word for word, with the shapes of NVLM-D-72B.

After a change that is meant, renew the files, and read the difference before it is committed:

    NVLM_TRT_RENEW_GOLDEN=1 pytest tests/serving/test_golden.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nvlm_trt.model.release import release_config
from nvlm_trt.model.synthetic import like_72b, tiny_spec
from nvlm_trt.recipe import load_recipe
from nvlm_trt.serving.config import configs, from_pbtxt, to_pbtxt
from nvlm_trt.serving.spec import ServingSpec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "triton"
RECIPES = sorted(path.stem for path in (ROOT / "build" / "recipes").glob("*.yaml"))
RENEW = "renew it with NVLM_TRT_RENEW_GOLDEN=1 pytest tests/serving/test_golden.py, if the change is meant"


def repository(recipe: str, folder: Path) -> dict[str, str]:
    """Every config.pbtxt of a recipe by model, as a build of a checkpoint with its shapes would write it."""
    built = load_recipe(ROOT / "build" / "recipes" / f"{recipe}.yaml")
    shapes = like_72b(45) if built.target == "gpu" else tiny_spec()
    (folder / "config.json").write_text(json.dumps(release_config(shapes.config)))
    return {name: to_pbtxt(config) for name, config in configs(ServingSpec.of(folder, built)).items()}


def renewing() -> bool:
    return os.environ.get("NVLM_TRT_RENEW_GOLDEN") == "1"


def test_every_recipe_has_a_golden_repository_and_no_other() -> None:
    if renewing():
        for folder in GOLDEN.iterdir():
            if folder.name not in RECIPES:
                shutil.rmtree(folder)
        pytest.skip("repositories of recipes that are gone are removed")
    assert sorted(folder.name for folder in GOLDEN.iterdir()) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_repository_of_a_recipe(recipe: str, tmp_path: Path) -> None:
    made = repository(recipe, tmp_path)
    folder = GOLDEN / recipe
    if renewing():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in made.items():
            (folder / f"{name}.pbtxt").write_text(text, encoding="utf-8")
        pytest.skip(f"{folder.name} is renewed")
    golden = {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}
    assert made.keys() == golden.keys(), f"{recipe} has other models: {RENEW}"
    for name, text in made.items():
        assert text == golden[name], f"{recipe}: {name} has changed: {RENEW}"


def test_the_decoder_declares_all_that_nvidia_s_configuration_does() -> None:
    """Counts of TensorRT-LLM's inflight_batcher_llm/tensorrt_llm/config.pbtxt (62 inputs, 21 outputs)."""
    config = from_pbtxt((GOLDEN / "nvlm-d-72b-fp8-tp4" / "tensorrt_llm.pbtxt").read_text())
    assert (len(config.input), len(config.output)) == (62, 21)
    assert len({tensor.name for tensor in config.input}) == 62
    tensors = {tensor.name: tensor for tensor in config.input}
    assert tensors["prompt_embedding_table"].data_type == tensors["encoder_input_features"].data_type
    assert list(tensors["lora_config"].dims) == [-1, 3]
