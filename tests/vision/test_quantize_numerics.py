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
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from onnx import ModelProto, TensorProto, helper

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import (
    PROJECTOR_NORM_EPS,
    VisionReference,
    normalise,
    pixel_shuffle,
    qk_norm,
    rms_norm,
)
from nvlm_trt.model.tensors import vision_layer
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.scales import VisionScales

Floats = npt.NDArray[np.float32]

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


def to_bfloat16(values: npt.ArrayLike) -> Floats:
    """Round to the nearest bfloat16, ties to even, by adding to the bits."""
    bits = np.atleast_1d(np.asarray(values, dtype=np.float32)).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


def to_int8(ratio: Floats) -> Floats:
    """QuantizeLinear's codes: from -128 on; a weight never has that one, its scale is its own largest magnitude's."""
    return np.clip(np.rint(ratio), -128, 127).astype(np.float32)


def to_fp8(ratio: Floats) -> Floats:
    """Four significant bits, exponents from -6 on, at most 448."""
    exponent = np.maximum(np.frexp(ratio)[1] - 1, -6)
    step = np.exp2(exponent - 3).astype(np.float32)
    return np.clip(np.rint(ratio / step) * step, -448, 448).astype(np.float32)


class FakeQuantised:
    """InternViT and projector with dummy heads cut out, every linear layer's input and weight rounded to codes."""

    def __init__(self, checkpoint: Checkpoint, scales: VisionScales, precision: str) -> None:
        self.checkpoint = checkpoint
        self.amax = scales.amax
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.settle: Callable[..., Floats] = {"fp32": np.float32, "bf16": to_bfloat16}[precision]
        self.code, self.limit, self.by_row = {
            "int8": (to_int8, np.float32(127), True),
            "fp8": (to_fp8, np.float32(448), False),
        }[scales.kind]
        self.real = checkpoint.config.vision.hidden_size

    def weight(self, linear: str) -> Floats:
        projector = {"projector/fc1": "mlp1.1", "projector/fc2": "mlp1.3"}
        _, layer, *part = linear.split("/")
        source = projector.get(linear) or vision_layer(int(layer[6:])) + ".".join(part).replace("attention", "attn")
        values = self.checkpoint.read(f"{source}.weight", torch.float32).numpy()
        if linear.endswith("qkv"):
            return values.reshape(3, -1, self.real)[:, : self.real].reshape(-1, self.real)
        return values[:, : self.real] if linear.endswith("proj") else values

    def product(self, linear: str, x: Floats) -> npt.NDArray[np.float64]:
        """The product of dequantised codes, summed in float64."""
        weight = self.weight(linear)
        largest = np.abs(weight).max(axis=1, keepdims=True) if self.by_row else np.abs(weight).max(keepdims=True)
        step, input_step = self.settle(largest / self.limit), self.settle(np.float32(self.amax[linear]) / self.limit)
        left = self.settle(self.code(x / input_step) * input_step).astype(np.float64)
        return left @ self.settle(self.code(weight / step) * step).astype(np.float64).T

    def linear(self, linear: str, x: torch.Tensor, source: str = "") -> torch.Tensor:
        result = torch.from_numpy(self.product(linear, x.float().numpy())).to(self.dtype)
        return result + self.read(f"{source}.bias") if source else result

    def read(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(name, self.dtype)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> Floats:
        reference = VisionReference(self.checkpoint, self.dtype)
        hidden = reference.embed(normalise(tiles).to(self.dtype))
        for index in range(self.checkpoint.config.vision.num_layers):
            hidden = self.block(f"vision/layer_{index:02d}", vision_layer(index), hidden)
        shuffled = pixel_shuffle(hidden[:, 1:], self.checkpoint.config.shuffle)
        scale, shift = self.read("mlp1.0.weight"), self.read("mlp1.0.bias")
        normed = F.layer_norm(shuffled, shuffled.shape[-1:], scale, shift, PROJECTOR_NORM_EPS)
        wide = F.gelu(self.linear("projector/fc1", normed))
        return self.linear("projector/fc2", wide).float().numpy()

    def block(self, name: str, source: str, hidden: torch.Tensor) -> torch.Tensor:
        vision, real = self.checkpoint.config.vision, self.real
        normed = rms_norm(hidden, self.read(f"{source}norm1.weight"), vision.layer_norm_eps)
        q, k, v = self.linear(f"{name}/attention/qkv", normed).chunk(3, dim=-1)
        q, k = (
            qk_norm(x, self.read(f"{source}attn.{letter}_norm.weight")[:real], real, vision.layer_norm_eps)
            for letter, x in (("q", q), ("k", k))
        )
        q, k, v = (x.unflatten(-1, (vision.num_heads, vision.head_dim)).transpose(1, 2) for x in (q, k, v))
        weights = ((q * vision.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        attended = self.linear(f"{name}/attention/proj", mixed, f"{source}attn.proj")
        hidden = hidden + attended * self.read(f"{source}ls1")
        normed = rms_norm(hidden, self.read(f"{source}norm2.weight"), vision.layer_norm_eps)
        wide = F.gelu(self.linear(f"{name}/mlp/fc1", normed, f"{source}mlp.fc1"))
        return hidden + self.linear(f"{name}/mlp/fc2", wide, f"{source}mlp.fc2") * self.read(f"{source}ls2")


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of) -> Checkpoint:
    return checkpoint_of(SHAPE)


@pytest.fixture(scope="module")
def tiles(checkpoint, tiles_of) -> npt.NDArray[np.uint8]:
    """Calibration sees the first half of them."""
    return tiles_of(6, checkpoint.config.tile_size)


@pytest.fixture(scope="module")
def scales_of(checkpoint, tiles, tmp_path_factory) -> Callable[[str], VisionScales]:
    out = tmp_path_factory.mktemp("calibration") / "scales.safetensors"
    calibrate_vision(checkpoint, tiles[:3], out, work_dir=out.parent / "work")
    return lambda kind: VisionScales.load(out, kind, checkpoint.config)


@pytest.fixture
def exposed(checkpoint, scales_of, tmp_path):
    """Exports a graph whose linear layers' inputs and products are outputs too, after `plant` has been at it."""

    def make(kind: str, precision: str, plant: Callable[[ModelProto], None] = lambda _: None) -> Path:
        scales = scales_of(kind)
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


def rms(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def worst_layer(model: FakeQuantised, outputs: Mapping[str, Floats]) -> float:
    """The largest error of a linear layer's product, relative to the product."""
    errors = []
    for linear in model.amax:
        product = model.product(linear, outputs[f"{linear}:x"])
        errors.append(rms(outputs[f"{linear}:y"] - product) / rms(product))
    return max(errors)


@pytest.mark.parametrize(("kind", "precision", "runtime"), RUNTIMES)
def test_graph_and_fake_quantised_model_agree(checkpoint, scales_of, exposed, tiles, kind, precision, runtime):
    model = FakeQuantised(checkpoint, scales_of(kind), precision)
    outputs = run(exposed(kind, precision), runtime, precision, tiles)
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
