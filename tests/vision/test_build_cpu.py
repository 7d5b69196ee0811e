"""The OpenVINO build: same graph, same bytes every time, clear refusals."""

from __future__ import annotations

import json
import shutil

import openvino
import pytest

from nvlm_trt.errors import BuildError, EngineError, RecipeError
from nvlm_trt.vision.build_cpu import build_vision_cpu

SHAPE = "five heads and three dummies"


@pytest.fixture
def export_copy(export_of, tmp_path):
    """A bf16 export that a test may damage."""
    return shutil.copytree(export_of(SHAPE, "bf16"), tmp_path / "export")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_build_gives_the_same_bytes(export_of, tmp_path, precision):
    source = export_of(SHAPE, precision)
    build_vision_cpu(source / "vision.onnx", tmp_path, precision=precision)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.bin", "model.xml"]
    for name in ("config.json", "model.bin", "model.xml"):
        assert (tmp_path / name).read_bytes() == (source / "cpu" / name).read_bytes()


def test_the_engine_keeps_the_graphs_names_and_tells_its_source(export_of):
    engine = export_of(SHAPE, "bf16") / "cpu"
    assert "vision/layer_01/attention/qkv/matmul" in (engine / "model.xml").read_text()
    config = json.loads((engine / "config.json").read_text())
    assert config["precision"] == "bf16"
    assert config["source"]["stripped_dummy_heads"] == 3
    assert config["bin_bytes"] == (engine / "model.bin").stat().st_size


def test_bf16_weights_stay_bf16(export_of):
    sizes = {kind: (export_of(SHAPE, kind) / "cpu" / "model.bin").stat().st_size for kind in ("fp32", "bf16")}
    assert sizes["bf16"] < 0.55 * sizes["fp32"]


def test_progress_starts_at_nothing_and_ends_at_all(export_of, tmp_path):
    seen = []
    source = export_of(SHAPE, "fp32")
    build_vision_cpu(source / "vision.onnx", tmp_path, precision="fp32", progress=lambda *step: seen.append(step))
    size = (source / "vision.onnx.data").stat().st_size
    assert seen == [(0, size), (size, size)]


def test_an_export_of_another_precision_is_refused(export_copy, tmp_path):
    with pytest.raises(RecipeError, match="another precision"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="fp32")


def test_a_precision_that_the_cpu_target_lacks_is_refused(export_copy, tmp_path):
    with pytest.raises(RecipeError, match="fp8"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="fp8")


def test_weights_that_are_cut_short_are_a_build_error(export_copy, tmp_path):
    data = export_copy / "vision.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(BuildError, match="OpenVINO"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="bf16")


def test_a_graph_that_is_no_onnx_is_a_build_error(export_copy, tmp_path):
    (export_copy / "vision.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(BuildError, match="OpenVINO"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="bf16")


def test_an_engine_that_cannot_be_written_is_no_fault_of_the_graph(export_copy, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Check 'bin_file' failed")

    monkeypatch.setattr(openvino, "save_model", refuse)
    with pytest.raises(BuildError, match=r"the vision engine cannot be written \(.*\); check the disk"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="bf16")


def test_an_export_without_its_config_is_an_engine_error(export_copy, tmp_path):
    (export_copy / "config.json").unlink()
    with pytest.raises(EngineError, match=r"no config\.json"):
        build_vision_cpu(export_copy / "vision.onnx", tmp_path, precision="bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_weight_is_left_to_be_multiplied_by_one_at_every_load(export_of, precision):
    model = openvino.Core().read_model(export_of(SHAPE, precision) / "cpu" / "model.xml")
    scalars = [
        operation.get_friendly_name().rsplit("/", 1)[-1]
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "Multiply" and not operation.input_value(1).get_shape()
    ]
    assert scalars == ["unit", "q_scaled", "q_scaled"]
