"""What each shipped recipe builds, stage by stage, and a gpu recipe as far as a machine without a GPU can take it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvlm_trt.environment.gpus import Gpu, GpuReport
from nvlm_trt.errors import EngineError, UserError, VerificationError
from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.pipeline.build import BuildRequest, build, dry_run, plan_build
from nvlm_trt.pipeline.manifest import load_manifest
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stages import build_plan, calibrate, gpu
from nvlm_trt.pipeline.stages.finish import gate_parts
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import BuildRecipe, load_recipe, parse_recipe

RECIPES = sorted(Path("build/recipes").glob("nvlm-d-72b-*.yaml"))
GOLDEN = Path("tests/golden/stages")
RENEW = "NVLM_TRT_RENEW_GOLDEN"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, engines are tied to it."""
    monkeypatch.setattr(gpu, "find_gpus", lambda: GpuReport(fault="none"))


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


def test_engines_are_built_again_on_a_gpu_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(Path("build/recipes/nvlm-d-72b-fp8-tp4.yaml"))
    portable = recipe.model_copy(
        update={"vision_engine": recipe.vision_engine.model_copy(update={"hardware_compatibility": "ampere_plus"})}
    )

    def tied(recipe: BuildRecipe, capability: int) -> list[object]:
        found = GpuReport((Gpu("a GPU", 80 << 30, capability, "GPU-1"),))
        monkeypatch.setattr(gpu, "find_gpus", lambda: found)
        stages = {stage.name: stage for stage in build_plan(Sources(recipe, planned_shapes(None), None))}
        return [stages[name].parts.get("compute_capability") for name in ("vision-compile", "decoder-compile")]

    assert (tied(recipe, 90), tied(recipe, 80)) == ([90, 90], [80, 80])
    assert tied(portable, 80) == [None, 80]


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


def test_what_was_measured_stands_while_the_recipe_changes_in_what_it_does_not_depend_on(
    aligned: Path, tmp_path: Path
) -> None:
    fields = {
        "target": "gpu",
        "vision_precision": "fp8",
        "decoder_precision": "fp8",
        "max_tiles": 1,
        "calibration": {"count": 20, "max_tokens": 64},
    }

    def request(**changes: object) -> BuildRequest:
        recipe = tmp_path / "gpu.yaml"
        recipe.write_text(yaml.safe_dump({**fields, **changes}))
        return BuildRequest(str(recipe), aligned, tmp_path / "engine", Selection(until="decoder-calibrate"))

    def measured_again(**changes: object) -> set[str]:
        _, decisions = dry_run(request(**changes))
        return {each.stage.name for each in decisions if each.action == "run" and each.stage.name.endswith("calibrate")}

    build(request(), Silent())
    assert measured_again(tp=2, max_batch_size=3, max_output_len=16, name="another") == set()
    assert measured_again(max_tiles=2) == {"vision-calibrate", "decoder-calibrate"}
    assert measured_again(decoder_precision="int8_sq") == {"decoder-calibrate"}


def test_a_failing_gate_stops_packaging_and_serving_and_leaves_a_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe, engine = tmp_path / "small.yaml", tmp_path / "engine"
    fields = (
        "target: cpu\ndecoder_precision: int8_wo\nmax_input_len: 512\nmax_output_len: 32\ncpu_threads: 1\n"
        "verify_prompts: 2\nverify_tokens: 4\ngates: "
    )
    request = BuildRequest(str(recipe), tiny_checkpoint, engine)
    recipe.write_text(fields + "{logit_kl: 0.000001}\n")
    with pytest.raises(VerificationError, match=r"logits mean_kl_divergence.*worst: vision layer \d.*, decoder layer"):
        build(request, Silent())
    assert load_manifest(engine).stages["verify"].state == "failed"
    assert not (engine / "triton_repo").exists()
    written = json.loads((engine / "verify.json").read_text())
    assert not written["ok"]
    assert [f"{row['part']} {row['layer']}" for row in written["sensitivity"]] == [f"decoder {i}" for i in range(3)]
    assert {row["part"] for row in written["layers"]} == {"vision", "decoder"}
    assert (engine / "sensitivity.png").is_file() == (find_spec("matplotlib") is not None)

    recipe.write_text(fields + "{}\n")
    _, manifest = build(request, Silent())
    assert json.loads((engine / "verify.json").read_text())["ok"]
    assert manifest.stages["package"].basis["inputs"].keys() >= {"verify"}
    recipe.write_text(fields + "{top1_agreement: 1, logit_kl: 0.000001}\n")
    ServedEngine.open(engine)
    with pytest.raises(VerificationError):
        build(request, Silent())
    assert load_manifest(engine).stages["verify"].state == "failed"
    with pytest.raises(EngineError, match=r"not complete: stage verify failed; run nvlm-trt build .* --until package"):
        ServedEngine.open(engine)


def test_the_verdict_depends_on_the_bounds_and_on_what_the_task_asks(tmp_path: Path) -> None:
    line = {"id": "1", "images": [], "question": "What?", "answers": ["1"], "metric": "exact"}
    task = tmp_path / "task.jsonl"
    recipe = parse_recipe({"name": "x", "target": "cpu", "gates": {"task": str(task)}}, "x")

    def parts(**changes: object) -> object:
        task.write_text(json.dumps(line | changes))
        return gate_parts(recipe)

    assert parts() == parts()
    assert parts() != parts(answers=["2"])
    assert parts() != parts(question="Why?")
    red, blue = ({"metric": "mathvista", "answers": ["A"], "choices": [first, "green"]} for first in ("red", "blue"))
    assert parts(**red) != parts(**blue)
    others = recipe.gates.model_copy(update={"task_accuracy_drop": 3.0})
    assert parts() != gate_parts(recipe.model_copy(update={"gates": others}))
    task.unlink()
    with pytest.raises(UserError, match="the task cannot be read"):
        gate_parts(recipe)


def test_widths_that_no_kernel_takes_are_refused_before_a_build(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\ntp: 4\ndecoder_precision: int4_awq\n")
    with pytest.raises(UserError, match="tp 4"):
        plan_build(BuildRequest(str(recipe), tiny_checkpoint, tmp_path / "engine"))
    assert not (tmp_path / "engine").exists()


def test_a_calibration_needs_room_for_the_samples_that_there_are(tmp_path: Path) -> None:
    image = Path("nvlm_trt/calibration/data/images/cat.jpg")
    (tmp_path / "cat.jpg").write_bytes(image.read_bytes())
    lines = [{"text": "What?", "images": ["cat.jpg"] * count} for count in (0, 1, 3)]
    samples = tmp_path / "samples.jsonl"

    def works(there: int, **calibration: object) -> list[int]:
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines[:there]))
        fields = {"name": "r", "target": "gpu", "vision_precision": "fp8", "decoder_precision": "fp8"}
        asked = {"samples": str(samples), "max_tokens": 2048, **calibration}
        plan = build_plan(Sources(parse_recipe({**fields, "calibration": asked}, "r"), planned_shapes(None), None))
        return [stage.estimate.work_bytes for stage in plan if stage.name.endswith("-calibrate")]

    tile, token = 2 * (2 * 1025 * 3200 + 256 * 8192), 2 * 8192
    vision, decoder = works(3, count=4096)
    assert vision == (7 + 8) * tile, "what is beyond 2,048 tokens of a sample is cut off"
    assert decoder == 3 * (2048 * token + 8 * tile)
    assert works(3, count=2) == works(2) == [7 * tile, decoder * 2 // 3]


@pytest.mark.parametrize(
    ("precisions", "until"),
    [({"vision_precision": "fp8"}, "vision-export"), ({"decoder_precision": "int8_sq"}, "decoder-convert")],
)
def test_a_calibration_on_a_gpu_is_refused_without_one_before_a_build(
    aligned: Path, tmp_path: Path, precisions: dict[str, str], until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "find_gpus", lambda: GpuReport(fault="none"))
    recipe, engine = tmp_path / "gpu.yaml", tmp_path / "engine"
    recipe.write_text(yaml.safe_dump({"target": "gpu", "calibration": {"device": "cuda"}, **precisions}))
    with pytest.raises(UserError, match=r"calibrate cannot run here: it needs a GPU, as calibration\.device is"):
        build(BuildRequest(str(recipe), aligned, engine, Selection(until=until)), Silent())
    assert not engine.exists()


def test_what_waits_for_a_stage_that_cannot_run_here_is_left_out_with_it(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "find_gpus", lambda: GpuReport(fault="none"))
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\nvision_precision: fp8\ncalibration: {device: cuda}\n")
    request = BuildRequest(str(recipe), aligned, tmp_path / "engine", Selection(until="decoder-convert"))
    decisions = {each.stage.name: (each.action, each.reason) for each in dry_run(request)[1]}
    assert decisions["vision-calibrate"][0] == "leave out"
    assert decisions["vision-export"] == ("leave out", "it needs vision-calibrate")
    assert decisions["decoder-convert"][0] == "run"


def test_what_the_named_gpu_cannot_run_is_refused_before_a_build(aligned: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\ngpu: a100-80g-sxm\ndecoder_precision: fp8\n")
    with pytest.raises(UserError, match=r"no fp8 \(compute capability 8.0, 8.9 is needed\): decoder, KV cache"):
        plan_build(BuildRequest(str(recipe), aligned, tmp_path / "engine"))
