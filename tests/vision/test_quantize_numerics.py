"""What the quantised graphs compute, against a fake-quantised torch model with rounding of its own.

A whole quantised model can be compared only up to its own quantisation error: a difference of one bit moves a value
over a rounding boundary somewhere, that moves others, and after a dozen roundings two correct implementations differ by
as much as either differs from float32. So every linear layer is checked by itself, on the very input that the graph
gave it, with bounds that are tight; and the whole model with bounds that follow from that error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
from onnx import ModelProto, TensorProto, helper

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.scales import CPU_WEIGHT_LIMIT, VisionScales

from .fake_quantised import FakeQuantised, Floats, rms

SHAPE = "five heads and three dummies"
RUNTIMES = {
    ("int8", "fp32", "onnxruntime"): 1e-6,  # float32 sums: 2^-24 a product, 80 to 320 of them
    ("fp8", "fp32", "onnxruntime"): 1e-6,
    ("int8", "fp32", "openvino"): 1e-3,  # takes the other code beside a boundary, once in 10^5
    ("fp8", "fp32", "openvino"): 1.5e-2,  # rounds to float16 before it rounds to FP8: one in 250 differs
    ("int8", "bf16", "openvino"): 1.5e-2,  # inputs are seen rounded to bf16: up to 2^-9 of 127 codes, then s each
    ("fp8", "bf16", "openvino"): 4e-2,  # the same, and the step of FP8 is an eighth of the value
}
"""Kind, type of the rest, runtime: root mean square error of a linear layer's product, relative to the product."""


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of) -> Checkpoint:
    return checkpoint_of(SHAPE)


@pytest.fixture(scope="module")
def tiles(checkpoint, tiles_of) -> npt.NDArray[np.uint8]:
    """Calibration sees the first half of them."""
    return tiles_of(6, checkpoint.config.tile_size)


@pytest.fixture(scope="module")
def scales_of(checkpoint, tiles, tmp_path_factory) -> Callable[..., VisionScales]:
    out = tmp_path_factory.mktemp("calibration") / "scales.safetensors"
    calibrate_vision(checkpoint, tiles[:3], out, work_dir=out.parent / "work")
    return lambda kind, limit=None: VisionScales.load(out, kind, checkpoint.config, weight_limit=limit)


@pytest.fixture
def exposed(checkpoint, scales_of, tmp_path):
    """Exports a graph whose linear layers' inputs and products are outputs too, after `plant` has been at it."""

    def make(kind: str, precision: str, plant: Callable[[ModelProto], None] = lambda _: None, limit=None) -> Path:
        scales = scales_of(kind, limit)
        export_vision(checkpoint, tmp_path, precision=precision, output_dtype="fp32", quantization=scales)
        model = onnx.load(tmp_path / "vision.onnx", load_external_data=False)
        plant(model)
        inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        for linear in scales.amax:
            shown = {f"{linear}:x": inputs[f"{linear}/input/quantized"], f"{linear}:y": f"{linear}/matmul"}
            for name, value in shown.items():
                model.graph.node.append(helper.make_node("Cast", [value], [name], to=TensorProto.FLOAT))
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        onnx.save(model, tmp_path / "exposed.onnx")
        return tmp_path / "exposed.onnx"

    return make


def run(path: Path, runtime: str, precision: str, tiles: npt.NDArray[np.uint8]) -> dict[str, Floats]:
    """All outputs by name."""
    names = [output.name for output in onnx.load(path, load_external_data=False).graph.output]
    if runtime == "onnxruntime":
        return dict(zip(names, onnxruntime.InferenceSession(path).run(names, {"tiles": tiles}), strict=True))
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    result = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})([tiles])
    return {name: np.array(result[name]) for name in names}


def worst_layer(model: FakeQuantised, outputs: Mapping[str, Floats]) -> float:
    """The largest error of a linear layer's product, relative to the product."""
    errors = []
    for linear in model.amax:
        product = model.product(linear, outputs[f"{linear}:x"])
        errors.append(rms(outputs[f"{linear}:y"] - product) / rms(product))
    return max(errors)


@pytest.mark.parametrize(("kind", "precision", "runtime"), RUNTIMES)
def test_graph_and_fake_quantised_model_agree(checkpoint, scales_of, exposed, tiles, kind, precision, runtime):
    limit = CPU_WEIGHT_LIMIT if (kind, runtime) == ("int8", "openvino") else None
    model = FakeQuantised(checkpoint, scales_of(kind, limit), precision)
    outputs = run(exposed(kind, precision, limit=limit), runtime, precision, tiles)
    assert worst_layer(model, outputs) < RUNTIMES[kind, precision, runtime]
    table, fake, exact = outputs["prompt_table"], model(tiles), VisionReference(checkpoint)(tiles).numpy()
    error = rms(fake - exact)
    # Two roundings of the same values are at worst independent: their difference is sqrt(2) of either's error.
    assert rms(table - fake) < 1.5 * error
    assert rms(table - exact) < 1.2 * error
    cosine = float((table * exact).sum() / np.linalg.norm(table) / np.linalg.norm(exact))
    assert cosine > {"int8": 0.9995, "fp8": 0.997}[kind]


def read_the_scales_of_columns(model: ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.name == "vision/layer_01/attention/proj/weight/dequantized")
    node.attribute[0].i = 1


def swap_the_scales_of_two_inputs(model: ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    one, other = (tensors[f"vision/layer_00/mlp/{part}/input/scale"] for part in ("fc1", "fc2"))
    one.raw_data, other.raw_data = other.raw_data, one.raw_data


def dequantise_with_another_layers_scale(model: ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.name == "vision/layer_00/mlp/fc1/input/dequantized")
    node.input[1] = "vision/layer_00/attention/proj/input/scale"


@pytest.mark.parametrize(
    ("kind", "precision", "runtime", "mistake"),
    [
        ("int8", "fp32", "onnxruntime", read_the_scales_of_columns),
        ("int8", "fp32", "onnxruntime", swap_the_scales_of_two_inputs),
        ("fp8", "fp32", "onnxruntime", swap_the_scales_of_two_inputs),
        ("int8", "fp32", "openvino", swap_the_scales_of_two_inputs),
        ("int8", "bf16", "openvino", dequantise_with_another_layers_scale),
        ("fp8", "bf16", "openvino", dequantise_with_another_layers_scale),
    ],
)
def test_a_planted_mistake_is_seen(checkpoint, scales_of, exposed, tiles, kind, precision, runtime, mistake):
    model = FakeQuantised(checkpoint, scales_of(kind), precision)
    outputs = run(exposed(kind, precision, mistake), runtime, precision, tiles)
    assert worst_layer(model, outputs) > 3 * RUNTIMES[kind, precision, runtime]
