"""The int8 engine of the cpu target: calibrated, exported, built, read back from its files and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.description import CpuEngineDescription
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.runner import VisionRunner
from nvlm_trt.vision.scales import CPU_WEIGHT_LIMIT, VisionScales

from .fake_quantised import FakeQuantised, Floats, rms

SHAPE = "five heads and three dummies"


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of) -> Checkpoint:
    return checkpoint_of(SHAPE)


@pytest.fixture(scope="module")
def tiles(checkpoint, tiles_of):
    """Calibration sees the first half of them."""
    return tiles_of(6, checkpoint.config.tile_size)


@pytest.fixture(scope="module")
def scales(checkpoint, tiles, tmp_path_factory) -> VisionScales:
    out = tmp_path_factory.mktemp("calibration") / "scales.safetensors"
    calibrate_vision(checkpoint, tiles[:3], out, work_dir=out.parent / "work")
    return VisionScales.load(out, "int8", checkpoint.config, weight_limit=CPU_WEIGHT_LIMIT)


def build(checkpoint: Checkpoint, scales: VisionScales, out: Path) -> Path:
    export_vision(checkpoint, out, precision="bf16", output_dtype="fp32", quantization=scales)
    engine = out / "cpu"
    engine.mkdir()
    build_vision_cpu(out / "vision.onnx", engine, precision="int8")
    return engine


@pytest.fixture(scope="module")
def engine(checkpoint, scales, tmp_path_factory) -> Path:
    return build(checkpoint, scales, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def runner(engine) -> VisionRunner:
    return VisionRunner(engine, threads=1)


@pytest.fixture(scope="module")
def exact(checkpoint, tiles) -> Floats:
    return VisionReference(checkpoint)(tiles).numpy()


def test_every_quantised_layer_runs_in_a_kernel_of_8_bit_integers(runner, scales):
    """As OpenVINO reports it of the compiled model; the patch embedding alone is not quantised."""
    facts = [node.get_rt_info() for node in runner._request.get_compiled_model().get_runtime_model().get_ordered_ops()]
    products = [each for each in facts if each["layerType"].astype(str) == "FullyConnected"]
    kernels = [each["primitiveType"].astype(str).rpartition("_")[2] for each in products]
    assert kernels.count("i8") == len(scales.amax) == len(kernels) - 1


def test_the_engine_computes_what_the_fake_quantised_model_computes(checkpoint, scales, runner, tiles, exact):
    table, fake = runner.encode(tiles), FakeQuantised(checkpoint, scales, "bf16")(tiles)
    error = rms(fake - exact)
    # Two roundings of the same values are at worst independent: their difference is sqrt(2) of either's error.
    assert rms(table - fake) < 1.5 * error
    assert 0.5 * error < rms(table - exact) < 1.2 * error


def test_codes_of_weights_leave_room_for_processors_that_add_products_in_16_bits(engine, scales):
    (graph, data) = (engine.parent / name for name in ("vision.onnx", "vision.onnx.data"))
    weights = [each for each in onnx.load(graph).graph.initializer if each.data_type == onnx.TensorProto.INT8]
    codes = [onnx.numpy_helper.to_array(each, str(data.parent)) for each in weights if each.name.endswith("/weight")]
    assert len(codes) == len(scales.amax)
    assert {int(abs(rows.astype(int)).max()) for rows in codes} == {64}


def test_inputs_cut_off_at_a_twentieth_of_their_range_are_noticed(checkpoint, scales, runner, tiles, exact, tmp_path):
    narrow = replace(scales, amax={name: amax / 20 for name, amax in scales.amax.items()})
    cut = VisionRunner(build(checkpoint, narrow, tmp_path), threads=1).encode(tiles)
    assert rms(cut - exact) > 3 * rms(runner.encode(tiles) - exact)


def test_a_tile_gives_the_same_rows_whatever_shares_its_batch(runner, tiles):
    assert np.array_equal(runner.encode(tiles)[4], runner.encode(tiles[4:5])[0])


def test_weights_take_half_of_the_bytes_of_bf16(engine, export_of):
    bf16 = (export_of(SHAPE, "bf16") / "cpu" / "model.bin").stat().st_size
    assert (engine / "model.bin").stat().st_size < 0.62 * bf16


def test_config_json_tells_the_quantisation_and_what_the_rest_computes_in(engine):
    description = CpuEngineDescription.load(engine)
    assert (description.source.precision, description.source.compute, description.precision) == ("int8", "bf16", "bf16")


def test_a_second_build_gives_the_same_bytes(engine, tmp_path):
    build_vision_cpu(engine.parent / "vision.onnx", tmp_path, precision="int8")
    for name in ("config.json", "model.bin", "model.xml"):
        assert (tmp_path / name).read_bytes() == (engine / name).read_bytes()
