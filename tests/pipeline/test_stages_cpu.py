"""Recipes of the cpu target in few bits, from the checkpoint to the Triton repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stages import build_plan
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import parse_recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "small"
    write_synthetic(out, tiny_spec(tile_size=56, decoder_layers=1))
    return out


def test_a_recipe_in_few_bits_is_calibrated_built_verified_and_packaged(small: Path, tmp_path: Path) -> None:
    recipe, engine = tmp_path / "few.yaml", tmp_path / "engine"
    recipe.write_text(
        "target: cpu\nvision_precision: int8\ndecoder_precision: int8\nmax_tiles: 1\n"
        "max_input_len: 256\nmax_output_len: 16\nverify_prompts: 2\nverify_tokens: 4\ncpu_threads: 1\n"
        "calibration: {count: 20, max_tokens: 64}\n"
        "gates: {logit_kl: 8, top1_agreement: 0, logit_distance: 1}\n"  # random weights do not bear few bits
    )
    _, manifest = build(BuildRequest(str(recipe), small, engine), Silent())
    assert all(record.state == "done" for record in manifest.stages.values())
    assert "decoder-calibrate" not in manifest.stages
    assert "vision-calibrate" in manifest.stages["verify"].basis["inputs"]
    report = json.loads((engine / "verify.json").read_text())
    assert report["ok"]
    # Rounding as torch rounds in these precisions, neither worse nor much better: what was asked for is what runs. An
    # engine of bf16 measures 0.15 at most; a decoder of which the processor rounds weights alone 0.4.
    for part in ("vision", "decoder"):
        assert 0.3 < report["figures"][part]["excess"] < 1.4
    assert (engine / "triton_repo").is_dir()


def test_both_targets_calibrate_vision_by_the_same_stage() -> None:
    stages = []
    for target in ("cpu", "gpu"):
        recipe = parse_recipe({"name": target, "target": target, "vision_precision": "int8"}, target)
        plan = build_plan(Sources(recipe, planned_shapes(None), None))
        (stage,) = (each for each in plan if each.name == "vision-calibrate")
        stages.append((stage.inputs, stage.outputs, dict(stage.parts), stage.modules, stage.estimate))
        (export,) = (each for each in plan if each.name == "vision-export")
        assert "vision-calibrate" in export.inputs
        assert export.parts["quantization"] == "int8"
    assert stages[0] == stages[1]


def test_in_which_order_layers_are_left_out_is_no_reason_to_build_again() -> None:
    parts = []
    for layers in ([0, 8], [8, 0]):  # two integers of one place in a small set: it keeps them as they came
        fields = {"name": "r", "target": "cpu", "decoder_precision": "int8_wo", "exclude_layers": layers}
        plan = build_plan(Sources(parse_recipe(fields, "r"), planned_shapes(None), None))
        parts += [dict(stage.parts) for stage in plan if stage.name == "decoder-compile"]
    assert parts[0] == parts[1]
