"""What each shipped recipe builds, stage by stage, and a gpu recipe as far as a machine without a GPU can take it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.pipeline.build import BuildRequest, build, plan_build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stages import build_plan
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import load_recipe

RECIPES = sorted(Path("build/recipes").glob("nvlm-d-72b-*.yaml"))
GOLDEN = Path("tests/golden/stages")
RENEW = "NVLM_TRT_RENEW_GOLDEN"


def described(recipe: Path) -> Iterator[dict[str, Any]]:
    """The stages of a recipe on the released shapes: what the manifest will hold of them before they have run."""
    for stage in build_plan(Sources(load_recipe(recipe), planned_shapes(None), None)):
        yield {
            "name": stage.name,
            "inputs": list(stage.inputs),
            "outputs": list(stage.outputs),
            "parts": dict(stage.parts),
            "tools": list(stage.tools),
            "estimate": dataclasses.asdict(stage.estimate),
        }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_stages_of_a_recipe_change_only_on_purpose(recipe: Path) -> None:
    """After a change on purpose: NVLM_TRT_RENEW_GOLDEN=1 pytest tests/pipeline/test_stages.py, and read the diff."""
    shown = json.dumps(list(described(recipe)), indent=1) + "\n"
    golden = GOLDEN / f"{recipe.stem}.json"
    if os.environ.get(RENEW):
        golden.write_text(shown, encoding="utf-8")
    assert shown == golden.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose widths the kernels of every precision take at tp 2."""
    out = tmp_path_factory.mktemp("checkpoint") / "aligned"
    spec = tiny_spec(
        tile_size=112, hidden_size=256, heads=4, kv_heads=2, intermediate_size=320, decoder_layers=2, vision_layers=1
    )
    write_synthetic(out, spec)
    return out


@pytest.mark.parametrize(
    ("vision", "decoder", "extra"),
    [
        ("fp8", "int4_awq", "decoder_engine: {awq_group_size: 64}"),
        ("int8", "fp8", "pp: 2"),
        (
            "bf16",
            "int8_sq",
            "decoder_engine: {kv_cache_precision: int8, kv_cache_reuse: false, chunked_context: false}",
        ),
        ("bf16", "int4_wo", "max_images: 2"),
    ],
)
def test_a_gpu_recipe_is_calibrated_converted_and_verified_without_a_gpu(
    aligned: Path, tmp_path: Path, vision: str, decoder: str, extra: str
) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text(
        f"target: gpu\ntp: 2\nvision_precision: {vision}\ndecoder_precision: {decoder}\nmax_tiles: 1\n"
        f"max_input_len: 512\nmax_output_len: 32\nverify_prompts: 2\n"
        f"calibration: {{count: 40, max_tokens: 64}}\n{extra}\n"
        "gates: {logit_kl: 8, top1_agreement: 0}\n"  # random weights do not bear few bits
    )
    engine = tmp_path / "engine"
    _, manifest = build(BuildRequest(str(recipe), aligned, engine, Selection(until="verify")), Silent())
    assert all(record.state == "done" for record in manifest.stages.values())
    assert ("vision-calibrate" in manifest.stages) == (vision != "bf16")
    assert ("decoder-calibrate" in manifest.stages) == (decoder != "int4_wo")
    assert json.loads((engine / "verify.json").read_text())["ok"]
    with pytest.raises(UserError, match="cannot run here: it needs TensorRT"):
        build(BuildRequest(str(recipe), aligned, engine), Silent())


def test_widths_that_no_kernel_takes_are_refused_before_a_build(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\ntp: 4\ndecoder_precision: int4_awq\n")
    with pytest.raises(UserError, match="tp 4"):
        plan_build(BuildRequest(str(recipe), tiny_checkpoint, tmp_path / "engine"))
    assert not (tmp_path / "engine").exists()


def test_what_the_named_gpu_cannot_run_is_refused_before_a_build(aligned: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\ngpu: a100-80g-sxm\ndecoder_precision: fp8\n")
    with pytest.raises(UserError, match=r"no fp8 \(compute capability 8.0, 8.9 is needed\): decoder, KV cache"):
        plan_build(BuildRequest(str(recipe), aligned, tmp_path / "engine"))
