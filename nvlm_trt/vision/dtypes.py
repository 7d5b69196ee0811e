"""The types of the vision graph, in the words of the recipe, of ONNX and of torch.

A served engine asks for their names alone: neither library is loaded for that, which takes a second and a half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nvlm_trt.errors import RecipeError
from nvlm_trt.model.safetensors_stream import VALUE_BYTES, torch_dtype

if TYPE_CHECKING:
    from torch import dtype as TorchDtype  # noqa: N812 - a type

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class DType:
    """One type: its recipe name, its number in ONNX files (TensorProto.DataType) and its word in safetensors files."""

    name: str
    onnx: int
    safetensors: str

    @property
    def torch(self) -> TorchDtype:
        """Its torch dtype."""
        return torch_dtype(self.safetensors)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return VALUE_BYTES[self.safetensors]


FP32 = DType("fp32", 1, "F32")
BF16 = DType("bf16", 16, "BF16")
FP16 = DType("fp16", 10, "F16")
INT8 = DType("int8", 3, "I8")
FP8 = DType("fp8", 17, "F8_E4M3")

GRAPH_PRECISIONS: Mapping[str, DType] = {dtype.name: dtype for dtype in (FP32, BF16)}
"""Types that the graph computes in."""

OUTPUT_DTYPES: Mapping[str, DType] = {dtype.name: dtype for dtype in (FP32, BF16, FP16)}
"""Types that the prompt table may leave the graph in: the decoder's own."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How linear layers are quantised; symmetric, so that zero stays zero.

    TensorRT was seen to use FP8 kernels only where input and weight have one scale each
    (NVIDIA/TensorRT-Model-Connect, pull request 1386); INT8 kernels take a scale for every row of a weight.

    Attributes:
        stored: The type of the codes.
        limit: The largest code.
        per_row: One scale for every row (output channel) of a weight, or one for all of it; an input has one scale.
    """

    stored: DType
    limit: float
    per_row: bool


QUANTIZATIONS: Mapping[str, Quantization] = {
    "int8": Quantization(INT8, 127.0, per_row=True),
    "fp8": Quantization(FP8, 448.0, per_row=False),
}
"""Ways to quantise the graph's linear layers, by the name of the precision in a recipe."""


def quantization(name: str) -> Quantization:
    """What a quantised precision's name stands for.

    Raises:
        RecipeError: the vision graph is not quantised in that way.
    """
    return _choose(name, QUANTIZATIONS, "the vision graph has no such quantisation")


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


def _choose(name: str, table: Mapping[str, Choice], fault: str) -> Choice:
    try:
        return table[name]
    except KeyError:
        raise RecipeError(fault, seen=name, expected=" or ".join(table)) from None
