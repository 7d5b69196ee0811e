"""The TensorRT build: what is asked of TensorRT, what comes out, and that nothing is left of what failed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import onnx
import pytest
from onnx import helper

from nvlm_trt.errors import BuildError, EngineError, RecipeError
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.vision.build_tensorrt import TensorrtVisionSettings, vision_settings
from nvlm_trt.vision.description import VisionDescription
from nvlm_trt.vision.engine_tensorrt import TensorrtEngineDescription
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.scales import VisionScales, linear_names

from .conftest import SETTINGS, SHAPE, SIDE


def test_an_engine_comes_with_its_record_its_layers_and_its_log(machine, build, export):
    build()
    assert build.names() == ["build.log", "engine.json", "inspector.json", "model.plan"]
    plan = (build.out / "model.plan").read_bytes()
    record = TensorrtEngineDescription.load(build.out)
    assert record.plan_sha256 == hashlib.sha256(plan).hexdigest()
    assert record.plan_bytes == len(plan)
    assert record.tensorrt == "10.14.1.48"
    assert record.gpu is None
    assert not record.inference
    assert (record.profile.least, record.profile.opt, record.profile.most) == (1, 5, 12)
    assert record.source == VisionDescription.load(export)
    assert json.loads((build.out / "inspector.json").read_text()) == {"Layers": ["one"]}
    log = (build.out / "build.log").read_text()
    assert "[INFO] Detected 1 input" in log
    assert "[WARNING] a kernel is slow" in log
    assert "a tactic" not in log


def test_the_network_is_strongly_typed_without_tf32_and_as_the_settings_say(machine, build, export):
    build()
    assert machine.parsed == [str(export / "vision.onnx")]
    assert machine.built == {
        "flags": 0b10,
        "builder_flags": set(),
        "pools": {"WORKSPACE": 3 << 30},
        "level": 4,
        "compatibility": "NONE",
        "verbosity": "DETAILED",
        "known_times": {},
    }


@pytest.mark.parametrize("level", ["ampere_plus", "same_compute_capability"])
def test_a_compatibility_level_is_found_by_its_name_and_recorded(machine, build, level):
    build(settings=dataclasses.replace(SETTINGS, hardware_compatibility=level))
    assert machine.built["compatibility"] == level.upper()
    assert TensorrtEngineDescription.load(build.out).hardware_compatibility == level


def test_the_profile_covers_the_tiles_of_the_settings_and_nothing_else_varies(machine, build):
    build()
    plan = json.loads((build.out / "model.plan").read_bytes())
    assert plan["profiles"] == [{"tiles": [[count, SIDE, SIDE, 3] for count in (1, 5, 12)]}]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_exports_are_built(machine, build, checkpoint_of, tmp_path, kind):
    checkpoint, out = checkpoint_of(SHAPE), tmp_path / "quantised"
    out.mkdir()
    scales = VisionScales(kind, dict.fromkeys(linear_names(checkpoint.config), 1.0))
    export_vision(checkpoint, out, precision="bf16", output_dtype="fp16", quantization=scales)
    build(out)
    source = TensorrtEngineDescription.load(build.out).source
    assert (source.precision, source.compute) == (kind, "bf16")


def test_progress_rises_from_nothing_to_all_through_nested_phases(machine, build, export):
    build()
    total = VisionDescription.load(export).data_bytes
    fractions = [done / total for done, _ in build.steps]
    assert fractions == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1], abs=2 / total)
    assert build.steps[-1] == (total, total)
    assert build.steps[-2][0] < total


def test_a_tensorrt_without_a_progress_monitor_builds_as_well(machine, build, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package(without=("IProgressMonitor",)))
    build()
    assert len(build.steps) == 2


def test_an_interruption_inside_a_callback_stops_the_build_and_is_raised(machine, build):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    finished = []
    machine.during_build = lambda: finished.append(True)
    with pytest.raises(KeyboardInterrupt):
        build(progress=interrupt)
    assert not finished
    assert build.names() == ["build.log"]


def test_a_warning_is_told_once(machine, build):
    build()
    assert build.told.count("TensorRT: a kernel is slow") == 1


@pytest.mark.parametrize("version", ["10.11.0.33", "10.16.1.11", "10.14.1.48.post1"])
def test_versions_from_10_11_to_10_16_are_taken(machine, build, monkeypatch, version):
    machine.version = version
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package())
    build()
    assert TensorrtEngineDescription.load(build.out).tensorrt == version


@pytest.mark.parametrize("version", ["8.6.1", "10.10.0.31", "10.17.0.1", "11.1.0.106", "dev"])
def test_other_versions_are_refused_with_the_image_to_use(machine, build, monkeypatch, version):
    machine.version = version
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package())
    build.out.mkdir()
    (build.out / "model.plan").write_bytes(b"an earlier engine")
    with pytest.raises(EngineError, match=rf"seen: {version}.*10\.11 to 10\.16.*tritonserver:26\.04-trtllm"):
        build()
    assert machine.parsed == []
    assert build.names() == ["model.plan"]


def test_a_machine_without_tensorrt_is_told_which_image_has_it(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"cannot be imported.*tritonserver"):
        build()


def test_an_operator_that_the_parser_lacks_is_refused_before_the_weights_are_read(machine, build, export_copy):
    model = onnx.load(export_copy / "vision.onnx", load_external_data=False)
    end = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["before_the_end" if name == end.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Det", ["before_the_end"], [end.name], name="odd"))
    (export_copy / "vision.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="Det"):
        build(export_copy)
    assert machine.parsed == []


def test_a_graph_that_is_no_onnx_is_a_build_error(machine, build, export_copy):
    (export_copy / "vision.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(BuildError, match="cannot be read"):
        build(export_copy)


def test_every_error_of_the_parser_is_in_one_message(machine, build):
    machine.parse_errors = [
        (3, "vision/a", "Gemm", "ErrorCode.INVALID_NODE", "no weights"),
        (7, "vision/b", "Pow", "ErrorCode.UNSUPPORTED_NODE", "no such type"),
    ]
    with pytest.raises(BuildError) as caught:
        build()
    for part in ("node 3 vision/a (Gemm)", "no weights", "node 7 vision/b (Pow)", "UNSUPPORTED_NODE"):
        assert part in str(caught.value)
    assert build.names() == ["build.log"]


def test_a_build_that_gives_no_engine_tells_what_tensorrt_said(machine, build):
    machine.build_error = "Could not find any implementation for node x"
    with pytest.raises(BuildError, match="Could not find any implementation for node x"):
        build()
    assert build.names() == ["build.log"]
    assert "[ERROR] Could not find" in (build.out / "build.log").read_text()
    assert not build.cache.exists()


def test_an_engine_of_an_earlier_build_does_not_outlive_a_failed_one(machine, build):
    build()
    machine.build_error = "no memory"
    with pytest.raises(BuildError):
        build()
    assert "model.plan" not in build.names()
    assert "engine.json" not in build.names()


def _recipe(tp=1, **vision_engine):
    return parse_recipe({"name": "r", "target": "gpu", "tp": tp, "vision_engine": vision_engine}, "r")


def test_settings_follow_the_recipe_and_default_to_one_image_and_one_request():
    assert vision_settings(_recipe(workspace_gib=1.5), tiles_per_image=7, tiles_per_request=28) == (
        TensorrtVisionSettings(
            min_tiles=1, opt_tiles=7, max_tiles=28, workspace_bytes=3 << 29, optimization_level=3,
            hardware_compatibility="none",
        )
    )  # fmt: skip
    chosen = vision_settings(_recipe(opt_tiles=4, max_tiles=9), tiles_per_image=7, tiles_per_request=28)
    assert (chosen.opt_tiles, chosen.max_tiles) == (4, 9)
    assert vision_settings(_recipe(max_tiles=3), tiles_per_image=7, tiles_per_request=28).opt_tiles == 3


@pytest.mark.parametrize(
    ("recipe", "opt", "most"),
    [(_recipe(tp=4), 2, 7), (_recipe(tp=8), 1, 4), (_recipe(tp=8, gpus=1), 7, 28), (_recipe(tp=4, opt_tiles=5), 5, 7)],
)
def test_a_plan_is_for_the_part_of_the_tiles_that_one_of_several_gpus_encodes(recipe, opt, most):
    chosen = vision_settings(recipe, tiles_per_image=7, tiles_per_request=28)
    assert (chosen.opt_tiles, chosen.max_tiles) == (opt, most)


def test_more_tiles_to_tune_for_than_a_batch_may_have_are_refused():
    with pytest.raises(RecipeError, match=r"opt_tiles.*seen: 8.*1 to 5"):
        vision_settings(_recipe(opt_tiles=8, max_tiles=5), tiles_per_image=7, tiles_per_request=28)
