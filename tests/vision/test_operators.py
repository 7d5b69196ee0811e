"""The allow-list of TensorRT's ONNX parser covers every node of every graph, and sees what it does not cover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nvlm_trt.model.synthetic import tiny_spec
from nvlm_trt.vision import operators
from nvlm_trt.vision.dtypes import GRAPH_PRECISIONS, OUTPUT_DTYPES
from nvlm_trt.vision.graph import build_vision_graph
from nvlm_trt.vision.operators import OPERATORS, unsupported
from nvlm_trt.vision.scales import VisionScales, linear_names

GRAPHS = [(precision, kind) for precision in GRAPH_PRECISIONS for kind in (None, "int8", "fp8")]


def graph_of(precision: str, kind: str | None, output: str = "bf16") -> ModelProto:
    config = tiny_spec(tile_size=56).config
    scales = None if kind is None else VisionScales(kind, dict.fromkeys(linear_names(config), 1.0))
    compute, table = GRAPH_PRECISIONS[precision], OUTPUT_DTYPES[output]
    return build_vision_graph(config, dummy_heads=3, precision=compute, output=table, quantization=scales).model


@pytest.mark.parametrize("output", OUTPUT_DTYPES)
@pytest.mark.parametrize(("precision", "kind"), GRAPHS)
def test_every_node_of_every_graph_is_on_the_list(precision, kind, output):
    assert unsupported(graph_of(precision, kind, output)) == []


def test_the_list_holds_nothing_that_no_graph_uses():
    used = {node.op_type for precision, kind in GRAPHS for node in graph_of(precision, kind).graph.node}
    assert used == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_that_is_not_on_the_list_is_named(monkeypatch, name):
    monkeypatch.setattr(operators, "OPERATORS", {key: row for key, row in OPERATORS.items() if key != name})
    faults = unsupported(graph_of("bf16", "fp8"))
    assert faults
    assert all(fault.endswith(f"operator :{name} is not on the list") for fault in faults)


@pytest.mark.parametrize("name", ["Gemm", "MatMul", "Softmax", "Gelu", "Split", "QuantizeLinear", "DequantizeLinear"])
def test_a_type_that_an_operator_does_not_take_is_named(monkeypatch, name):
    row = operators.Operator(OPERATORS[name].types - {TensorProto.BFLOAT16}, OPERATORS[name].constants)
    monkeypatch.setattr(operators, "OPERATORS", {**OPERATORS, name: row})
    assert any(f"{name} of BFLOAT16" in fault for fault in unsupported(graph_of("bf16", "int8")))


def compute_a_scale(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.node.insert(0, helper.make_node("Sqrt", [node.input[1]], ["computed"]))
    node.input[1] = "computed"


def move_a_zero_point(model: ModelProto) -> None:
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "constants/zero_point")
    zero.CopyFrom(numpy_helper.from_array(np.array(3, dtype=np.int8), zero.name))


def use_pixels_as_they_come(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Transpose", ["tiles"], ["turned"]))


def take_a_newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 23


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (compute_a_scale, "QuantizeLinear whose input 1 is computed"),
        (move_a_zero_point, "zero point is not zero"),
        (use_pixels_as_they_come, "turned: UINT8 inside the graph"),
        (use_pixels_as_they_come, "Transpose of UINT8"),
        (take_a_newer_opset, "opset 23"),
    ],
)
def test_what_the_parser_restricts_is_seen(plant: Callable[[ModelProto], None], fault: str):
    model = graph_of("bf16", "int8")
    plant(model)
    assert any(fault in line for line in unsupported(model))
