"""The ONNX graph: standard, readable, strongly typed, and the same function as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from nvlm_trt.model.config import load_config
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.vision.dtypes import BF16, FP32
from nvlm_trt.vision.graph import build_vision_graph
from nvlm_trt.vision.operators import OPERATORS

SHAPES = (
    "five heads and three dummies",
    "seven heads and no dummy",
    "one head and seven dummies, three blocks",
    "unusual widths",
    "release tile",
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_checker_accepts_the_graph_with_strict_shape_inference(export_of, shape, precision):
    path = export_of(shape, precision) / "vision.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_standard_operators_of_one_opset_are_used(export_of, precision):
    model = onnx.load(export_of(SHAPES[0], precision) / "vision.onnx", load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.op_type for node in model.graph.node} <= set(OPERATORS)
    assert all(node.domain == "" for node in model.graph.node)


def test_nodes_are_named_after_their_place_in_the_model(export_of):
    model = onnx.load(export_of(SHAPES[0], "fp32") / "vision.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(name.startswith(("vision/", "projector/")) for name in names if name != "prompt_table")
    assert {"vision/layer_00/attention/qkv/matmul", "vision/layer_01/mlp/gelu", "projector/norm"} <= set(names)


def test_any_number_of_tiles_goes_in_and_as_many_groups_of_rows_come_out(export_of):
    model = onnx.load(export_of(SHAPES[0], "fp32") / "vision.onnx", load_external_data=False)
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["num_tiles", 112, 112, 3], ["num_tiles", 16, 128]]
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_computes_what_the_reference_computes(export_of, checkpoint_of, tiles_of, shape):
    checkpoint = checkpoint_of(shape)
    tiles = tiles_of(3, checkpoint.config.tile_size)
    expected = VisionReference(checkpoint)(tiles).numpy()
    session = onnxruntime.InferenceSession(export_of(shape, "fp32") / "vision.onnx")
    (table,) = session.run(None, {"tiles": tiles})
    assert table.shape == expected.shape
    assert np.abs(table - expected).max() < 1e-4 * np.abs(expected).max()


def test_one_graph_takes_1_to_13_tiles(export_of, checkpoint_of, tiles_of):
    checkpoint = checkpoint_of(SHAPES[1])
    tiles = tiles_of(13, checkpoint.config.tile_size)
    expected = VisionReference(checkpoint)(tiles).numpy()
    session = onnxruntime.InferenceSession(export_of(SHAPES[1], "fp32") / "vision.onnx")
    for count in range(1, 14):
        (table,) = session.run(None, {"tiles": tiles[:count]})
        assert table.shape == expected[:count].shape
        assert np.abs(table - expected[:count]).max() < 1e-4 * np.abs(expected).max()


def test_the_bf16_graph_is_bf16_with_islands_of_fp32(export_of):
    model = onnx.load(export_of(SHAPES[0], "bf16") / "vision.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    types: dict[str, set[int]] = {}
    for node in inferred.node:
        types.setdefault(node.op_type, set()).add(kinds[node.output[0]])
    assert all(types[op] == {TensorProto.BFLOAT16} for op in ("Gemm", "MatMul", "Softmax", "Gelu"))
    assert all(types[op] == {TensorProto.FLOAT} for op in ("ReduceMean", "Sqrt", "LayerNormalization"))
    matrices = [tensor.data_type for tensor in inferred.initializer if tensor.name.endswith("weight")]
    assert matrices.count(TensorProto.FLOAT) == 1, "the projector's LayerNorm weight"


def test_the_graph_of_the_released_shape_is_valid_without_its_weights(nvlm_72b: Path, tmp_path: Path):
    config = load_config(nvlm_72b)
    graph = build_vision_graph(config, dummy_heads=7, precision=BF16, output=FP32)
    inferred = onnx.shape_inference.infer_shapes(graph.model, check_type=True, strict_mode=True, data_prop=True)
    shape = [dim.dim_param or dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["num_tiles", 256, 8192]
    # Facts of the release: 6,052,672,640 values in the ViT, 516,176,640 of them in dummy heads, 620,717,056 in mlp1.
    values = sum(weight.nbytes // weight.dtype.itemsize for weight in graph.weights)
    assert values == 6_052_672_640 - 516_176_640 + 620_717_056
    assert graph.model.ByteSize() < 2_000_000


def test_small_constants_of_the_release_are_in_the_graph(export_of):
    """Too small to move the output beyond the gate on these checkpoints, so they are read off the graph."""
    graph = onnx.load(export_of(SHAPES[3], "fp32") / "vision.onnx", load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name.startswith("constants/")}
    value = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    assert value["constants/rms_norm_eps"] == np.float32(1e-6)
    assert value["constants/q_scale"] == np.float32(24**-0.5)
    (norm,) = (node for node in graph.node if node.op_type == "LayerNormalization")
    assert next(a.f for a in norm.attribute if a.name == "epsilon") == np.float32(1e-5)
    gelus = [node for node in graph.node if node.op_type == "Gelu"]
    assert {a.s for node in gelus for a in node.attribute} == {b"none"}
