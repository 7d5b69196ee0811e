"""The floating-point types of the vision graph, in the words of the recipe, of ONNX and of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from onnx import TensorProto

from nvlm_trt.errors import RecipeError


@dataclass(frozen=True, slots=True)
class DType:
    """One floating-point type: its recipe name, ONNX element type, torch type and bytes per value."""

    name: str
    onnx: int
    torch: torch.dtype
    itemsize: int


FP32 = DType("fp32", TensorProto.FLOAT, torch.float32, 4)
BF16 = DType("bf16", TensorProto.BFLOAT16, torch.bfloat16, 2)
FP16 = DType("fp16", TensorProto.FLOAT16, torch.float16, 2)

GRAPH_PRECISIONS: Mapping[str, DType] = {dtype.name: dtype for dtype in (FP32, BF16)}
"""Types that the graph computes in."""

OUTPUT_DTYPES: Mapping[str, DType] = {dtype.name: dtype for dtype in (FP32, BF16, FP16)}
"""Types that the prompt table may leave the graph in: the decoder's own."""


def graph_precision(name: str) -> DType:
    """The type that a precision name stands for.

    Raises:
        RecipeError: the vision graph is not written in that precision.
    """
    return _choose(name, GRAPH_PRECISIONS, "the vision graph is not written in this precision")


def table_dtype(name: str) -> DType:
    """The type that an output name stands for.

    Raises:
        RecipeError: the prompt table is not written in that type.
    """
    return _choose(name, OUTPUT_DTYPES, "the prompt table has no such type")


def _choose(name: str, table: Mapping[str, DType], fault: str) -> DType:
    try:
        return table[name]
    except KeyError:
        raise RecipeError(fault, seen=name, expected=" or ".join(table)) from None
