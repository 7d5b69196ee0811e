"""What TensorRT's ONNX parser takes, of the operators that the vision graph uses: an allow-list that can be checked.

Source: the operator support matrix of onnx/onnx-tensorrt, docs/operators.md, as of TensorRT 10.6 (commit 0137504e,
opsets 9 to 22) and of 10.15 (opsets 9 to 24). The rows below are the same in both, and docs/Changelog.md names no
change to them in between (only more types for Pow), so they hold for 10.11 to 10.15. NVIDIA's guide for TensorRT 11
gives opsets 9 to 25; the rows of 10.16 and 11 were not at hand. How operators are imported was read in
onnxOpImporters.cpp of 10.15 (commit dd0a3a9f): start and end of Shape, num_outputs of Split, transB of Gemm and a bf16
scale of QuantizeLinear are all taken; QuantizeLinear and DequantizeLinear also in that of 10.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference

OPSETS = (9, 22)
"""The range that every parser from 10.6 on takes."""

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ANY = NUMBERS | {TensorProto.BOOL}
QUANTIZED = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN})


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the support matrix.

    Attributes:
        types: Element types of its inputs and outputs.
        constants: Positions of inputs that must be constants at build time.
    """

    types: frozenset[int]
    constants: tuple[int, ...] = ()


OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(NUMBERS),
    "Cast": Operator(ANY | {TensorProto.UINT8}),
    "Concat": Operator(ANY),
    "DequantizeLinear": Operator(FLOATS | QUANTIZED, constants=(1,)),
    "Div": Operator(NUMBERS),
    "Expand": Operator(ANY),
    "Gelu": Operator(FLOATS),
    "Gemm": Operator(FLOATS),
    "LayerNormalization": Operator(FLOATS),
    "MatMul": Operator(FLOATS),
    "Mul": Operator(NUMBERS),
    "Pow": Operator(FLOATS),
    "QuantizeLinear": Operator(FLOATS | QUANTIZED, constants=(1, 2)),
    "ReduceMean": Operator(NUMBERS, constants=(1,)),
    "Reshape": Operator(ANY),
    "Shape": Operator(ANY),
    "Slice": Operator(ANY),
    "Softmax": Operator(FLOATS),
    "Split": Operator(ANY),
    "Sqrt": Operator(FLOATS),
    "Sub": Operator(NUMBERS),
    "Transpose": Operator(ANY),
}
"""The rows, each no wider than the graph may need: Pow takes integers from 10.12 on, Gelu takes them nominally."""


def unsupported(model: ModelProto) -> list[str]:
    """What in the graph is not on the list, one sentence each; empty if TensorRT's parser takes all of it.

    Args:
        model: A graph of this project; its weights need not be there.
    """
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types, constants = _types(graph), {tensor.name: tensor for tensor in graph.initializer}
    ends = {value.name for value in (*graph.input, *graph.output)}
    faults = [f"opset {entry.version}" for entry in model.opset_import if not OPSETS[0] <= entry.version <= OPSETS[1]]
    faults += [
        f"{name}: UINT8 inside the graph; TensorRT has it for inputs and outputs of the graph only"
        for name, kind in types.items()
        if kind == TensorProto.UINT8 and name not in ends
    ]
    for node in graph.node:
        faults += [f"{node.name}: {fault}" for fault in _node_faults(node, types, constants)]
    return faults


def _node_faults(node: NodeProto, types: Mapping[str, int], constants: Mapping[str, TensorProto]) -> list[str]:
    operator = OPERATORS.get(node.op_type)
    if operator is None or node.domain:
        return [f"operator {node.domain}:{node.op_type} is not on the list"]
    faults = []
    for name in (*node.input, *node.output):
        if types[name] not in operator.types:
            faults.append(f"{node.op_type} of {TensorProto.DataType.Name(types[name])} ({name})")
    for position in operator.constants:
        if position < len(node.input) and node.input[position] not in constants:
            faults.append(f"{node.op_type} whose input {position} is computed ({node.input[position]})")
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        zero = constants.get(node.input[2])
        if zero is not None and np.any(numpy_helper.to_array(zero).astype(np.float32)):
            faults.append(f"{node.op_type} whose zero point is not zero")
    if node.op_type == "LayerNormalization" and len(node.output) > 1:
        faults.append("LayerNormalization with more than one output")
    return faults


def _types(graph: GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in graph.initializer}
