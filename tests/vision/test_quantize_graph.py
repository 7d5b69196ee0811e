"""The quantised graph and its export: Q/DQ where they belong, exact codes and scales, streamed, valid at 6B scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import CheckpointError, EngineError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig, VisionConfig
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.vision.dtypes import BF16, GRAPH_PRECISIONS
from nvlm_trt.vision.export import export_vision, vision_export_bytes
from nvlm_trt.vision.graph import DATA_FILE, build_vision_graph
from nvlm_trt.vision.scales import VisionScales, linear_names

DUMMY = "five heads and three dummies"
LAYER = "vision_model.encoder.layers.1."
FILES = ("vision.onnx", "vision.onnx.data", "config.json")
CODES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
FLOATS = {"fp32": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16}

PEAK_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.scales import VisionScales
checkpoint, out = Checkpoint.open(sys.argv[1]), Path(sys.argv[2])
tiles = np.random.default_rng(7).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
calibrate_vision(checkpoint, tiles, out / "scales.safetensors", work_dir=out / "work")
for kind in ("int8", "fp8"):
    scales = VisionScales.load(out / "scales.safetensors", kind, checkpoint.config)
    export_vision(checkpoint, out, precision="bf16", output_dtype="bf16", quantization=scales)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def made_up_scales(kind: str, config: NvlmConfig) -> VisionScales:
    """Another magnitude for every linear layer."""
    return VisionScales(kind, {name: 1.0 + index / 7 for index, name in enumerate(linear_names(config))})


def release_config(layers: int) -> NvlmConfig:
    """The widths of the release (InternViT-6B, Qwen2-72B)."""
    spec = tiny_spec().config
    vision = VisionConfig(3200, 12800, layers, 25, image_size=448, patch_size=14, layer_norm_eps=1e-6)
    return replace(spec, vision=vision, decoder=replace(spec.decoder, hidden_size=8192, intermediate_size=29568))


@pytest.fixture(scope="module")
def quantized(checkpoint_of, tmp_path_factory):
    """The export of the checkpoint with dummy heads, of a kind and a compute precision. Read only."""
    root = tmp_path_factory.mktemp("quantized")

    def make(kind: str, precision: str) -> Path:
        out = root / f"{kind}-{precision}"
        if not out.exists():
            out.mkdir()
            checkpoint = checkpoint_of(DUMMY)
            scales = made_up_scales(kind, checkpoint.config)
            export_vision(checkpoint, out, precision=precision, output_dtype="fp32", quantization=scales)
        return out

    return make


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    """Every initializer of an export, as float32, read by onnx's own reader."""
    graph = onnx.load(directory / "vision.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in graph.initializer}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_every_linear_layer_multiplies_dequantised_values_in_the_graphs_type(quantized, checkpoint_of, kind, precision):
    path = quantized(kind, precision) / "vision.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    gemms = [node for node in graph.node if node.op_type == "Gemm" and "embeddings" not in node.name]
    assert [node.name.removesuffix("/matmul") for node in gemms] == list(linear_names(checkpoint_of(DUMMY).config))
    for gemm in gemms:
        value, weight = (maker[name] for name in gemm.input)
        assert (value.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert maker[value.input[0]].op_type == "QuantizeLinear"
        assert types[value.input[0]] == types[weight.input[0]] == CODES[kind]
        assert {types[name] for node in (value, weight) for name in (*node.output, node.input[1])} == {
            FLOATS[precision]
        }


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_patch_embedding_attention_norms_and_softmax_are_left_alone(quantized, kind):
    graph = onnx.load(quantized(kind, "bf16") / "vision.onnx", load_external_data=False).graph
    reads = {node.op_type for node in graph.node for name in node.input if name.endswith("/dequantized")}
    assert reads == {"Gemm"}
    (patch,) = (node for node in graph.node if node.name == "vision/embeddings/patch/matmul")
    assert not any("quantized" in name for name in patch.input)
    count = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert count == 4 * 2 + 2


def test_without_its_quantisation_the_graph_is_the_plain_one(checkpoint_of):
    config = checkpoint_of(DUMMY).config
    plain, coded = (
        build_vision_graph(config, dummy_heads=3, precision=BF16, output=BF16, quantization=scales).model.graph
        for scales in (None, made_up_scales("fp8", config))
    )
    assert [node.name for node in coded.node if "Linear" not in node.op_type] == [node.name for node in plain.node]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_int8_codes_are_the_rows_over_their_own_scale(quantized, checkpoint_of, precision):
    tensors, checkpoint = tensors_of(quantized("int8", precision)), checkpoint_of(DUMMY)
    real, padded = 80, 128
    qkv = checkpoint.read(f"{LAYER}attn.qkv.weight").float().view(3, padded, real)[:, :real].reshape(-1, real)
    proj = checkpoint.read(f"{LAYER}attn.proj.weight").float()[:, :real]
    for name, weight in (("qkv", qkv), ("proj", proj)):
        codes = tensors[f"vision/layer_01/attention/{name}/weight"]
        scale = tensors[f"vision/layer_01/attention/{name}/weight/scale"]
        exact = weight.abs().numpy().max(axis=1) / np.float32(127)
        assert np.array_equal(scale, torch.from_numpy(exact).to(GRAPH_PRECISIONS[precision].torch).float().numpy())
        assert np.array_equal(codes, np.clip(np.rint(weight.numpy() / scale[:, None]), -127, 127))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp8_codes_are_the_nearest_to_the_weight_over_one_scale(quantized, checkpoint_of, precision):
    tensors = tensors_of(quantized("fp8", precision))
    weight = checkpoint_of(DUMMY).read("mlp1.1.weight").float().numpy()
    scale = tensors["projector/fc1/weight/scale"]
    assert scale.shape == ()
    assert scale == torch.tensor(np.abs(weight).max() / np.float32(448)).to(GRAPH_PRECISIONS[precision].torch).float()
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    values = values[np.isfinite(values)]
    ratio = (weight / scale).ravel()[:5000]
    nearest = np.abs(ratio[:, None] - values).min(axis=1)
    assert np.array_equal(np.abs(ratio - tensors["projector/fc1/weight"].ravel()[:5000]), nearest)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_of_inputs_come_from_the_calibration(quantized, checkpoint_of, kind):
    tensors = tensors_of(quantized(kind, "fp32"))
    limit = {"int8": 127, "fp8": 448}[kind]
    for name, amax in made_up_scales(kind, checkpoint_of(DUMMY).config).amax.items():
        assert tensors[f"{name}/input/scale"] == np.float32(amax) / np.float32(limit)
    assert tensors["constants/zero_point"] == 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_size_is_known_beforehand(quantized, checkpoint_of, kind):
    for precision in ("fp32", "bf16"):
        written = sum((quantized(kind, precision) / name).stat().st_size for name in FILES[:2])
        assert vision_export_bytes(checkpoint_of(DUMMY), precision, kind) == written


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_same_bytes_come_whatever_the_size_of_the_blocks_read(
    quantized, checkpoint_of, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr("nvlm_trt.vision.export.BLOCK_VALUES", 700)
    checkpoint = checkpoint_of(DUMMY)
    scales = made_up_scales(kind, checkpoint.config)
    export_vision(checkpoint, tmp_path, precision="bf16", output_dtype="fp32", quantization=scales)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (quantized(kind, "bf16") / name).read_bytes()


def test_config_json_tells_how_it_is_quantised_and_what_the_rest_computes_in(quantized, export_of):
    config = json.loads((quantized("fp8", "bf16") / "config.json").read_text())
    assert (config["precision"], config["compute"]) == ("fp8", "bf16")
    assert "compute" not in json.loads((export_of(DUMMY, "bf16") / "config.json").read_text())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_of_zeros_have_a_scale_and_weights_that_are_not_finite_are_refused(tmp_path, kind):
    source = tmp_path / "checkpoint"
    write_synthetic(source, tiny_spec(tile_size=56, decoder_layers=1, dummy_heads=0, max_shard_bytes=None))
    tensors = load_file(source / "model.safetensors")
    tensors[f"{LAYER}mlp.fc1.weight"][3:7] = 0
    save_file(tensors, source / "model.safetensors")
    checkpoint = Checkpoint.open(source)
    scales = made_up_scales(kind, checkpoint.config)
    export_vision(checkpoint, tmp_path, precision="bf16", output_dtype="bf16", quantization=scales)
    exported = tensors_of(tmp_path)
    assert (exported["vision/layer_01/mlp/fc1/weight/scale"] > 0).all()
    assert not exported["vision/layer_01/mlp/fc1/weight"][3:7].any()
    assert exported["vision/layer_01/mlp/fc1/weight"][7].any()
    tensors[f"{LAYER}mlp.fc1.weight"][5, 1] = torch.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite.*mlp\.fc1\.weight"):
        export_vision(checkpoint, tmp_path, precision="bf16", output_dtype="bf16", quantization=scales)


def test_an_uncalibrated_layer_and_an_unknown_kind_are_refused(checkpoint_of, tmp_path):
    checkpoint = checkpoint_of(DUMMY)
    scales = made_up_scales("int8", checkpoint.config)
    rest = {name: amax for name, amax in scales.amax.items() if name != "projector/fc2"}
    with pytest.raises(EngineError, match="lacks a linear layer; seen: projector/fc2"):
        export_vision(
            checkpoint, tmp_path, precision="bf16", output_dtype="bf16", quantization=VisionScales("int8", rest)
        )
    with pytest.raises(RecipeError, match="int8 or fp8"):
        vision_export_bytes(checkpoint, "bf16", "int4")
    assert not list(tmp_path.iterdir())


def test_memory_of_calibration_and_export_does_not_grow_with_the_number_of_layers(tmp_path):
    at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back: no noise in the peak
    peaks, sizes = [], []
    for layers in (2, 6):
        source, out = tmp_path / f"checkpoint-{layers}", tmp_path / f"export-{layers}"
        out.mkdir()
        spec = tiny_spec(tile_size=56, vision_heads=48, vision_layers=layers, decoder_layers=1, max_shard_bytes=None)
        write_synthetic(source, spec)
        command = [sys.executable, "-c", PEAK_SCRIPT, source, out]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, env=at_once)
        peaks.append(int(ran.stdout) * 1024)
        sizes.append((source / "model.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] > 50e6
    assert peaks[1] - peaks[0] < 5e6


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_the_graph_of_the_released_widths_and_depth_is_valid_beside_its_data_file(tmp_path, kind):
    config = release_config(layers=45)
    scales = None if kind is None else made_up_scales(kind, config)
    graph = build_vision_graph(config, dummy_heads=7, precision=BF16, output=BF16, quantization=scales)
    path, inferred = tmp_path / "vision.onnx", tmp_path / "inferred.onnx"
    path.write_bytes(graph.model.SerializeToString(deterministic=True))
    with pytest.raises(onnx.checker.ValidationError, match=DATA_FILE):
        onnx.checker.check_model(str(path), full_check=True)
    with (tmp_path / DATA_FILE).open("wb") as file:
        file.truncate(graph.data_bytes)  # sparse: takes no room on the disk
    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(path), str(inferred), check_type=True, strict_mode=True, data_prop=True)
    (output,) = onnx.load(inferred, load_external_data=False).graph.output
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["num_tiles", 256, 8192]
    assert path.stat().st_size < 1_000_000, "protobuf files end at 2 GB"
    # ViT without dummy heads and projector as released, of which the linear layers are all but 6.9 million values.
    values = 6_052_672_640 - 516_176_640 + 620_717_056
    linears = 45 * (4 * 3200**2 + 2 * 3200 * 12800) + 29568 * (12800 + 8192)
    expected = 2 * values if kind is None else linears + 2 * (values - linears)
    assert expected <= graph.data_bytes < 1.001 * expected
