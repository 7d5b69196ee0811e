"""A small builder of ONNX graphs whose weights lie in one external file.

Nodes carry the name of the tensor that they make, so that a profile or an error message of any engine can be read.
Weights are only planned here (name, type, shape, place in the file, source of the values); `export.py` streams them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from nvlm_trt.vision.dtypes import FP32, DType, Quantization

OPSET = 20
"""Gelu exists from 20 on, FP8 and bf16 QuantizeLinear from 19 on; TensorRT 10's parser takes 9 to 22 and more."""

IR_VERSION = 9
"""The IR version of the ONNX release that brought opset 20."""

ALIGNMENT = 4096
"""Offsets of weights are multiples of a page, so that every engine can map them instead of copying."""

Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The values of a weight: rows of a checkpoint tensor seen as [dim 0, all others], the first columns of each.

    Attributes:
        tensor: Its name in the checkpoint.
        rows: Ranges [start, stop) of dimension 0, in the order in which they are written.
        columns: How many leading values of a row are kept.
    """

    tensor: str
    rows: tuple[tuple[int, int], ...]
    columns: int


@dataclass(frozen=True, slots=True)
class WeightScale:
    """The scale of a quantised weight, which follows it in the external file: a value a row, or a scalar for all."""

    quantization: Quantization
    dtype: DType
    offset: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the graph and its place in the external file (offset in bytes).

    Attributes:
        name: Its name in the graph.
        dtype: The type that it is stored in: that of the codes where it is quantised.
        shape: Its shape.
        offset: Where it begins.
        source: Its values.
        scale: The scale to be computed from the values, if it is quantised.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    source: WeightSource
    scale: WeightScale | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return _nbytes(self.dtype, self.shape)


class GraphBuilder:
    """Collects nodes, constants and planned weights of one graph.

    Args:
        dtype: The type that the graph computes in; FP32 islands inside it are entered and left by `widen`, `narrow`.
        data_file: Name of the external file, beside the ONNX file.
    """

    def __init__(self, dtype: DType, data_file: str) -> None:
        self.dtype = dtype
        self.weights: list[Weight] = []
        self._data_file = data_file
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._data_bytes = 0

    @property
    def data_bytes(self) -> int:
        """Length of the external file."""
        return self._data_bytes

    def op(self, name: str, op_type: str, *inputs: str, attributes: Mapping[str, Attribute] | None = None) -> str:
        """Add a node with one output; node and output are both called `name`."""
        self._add_node(name, op_type, inputs, [name], attributes)
        return name

    def split(self, name: str, value: str, outputs: Sequence[str], *, axis: int) -> tuple[str, ...]:
        """Add a Split into equal parts; the outputs are called `name/<part>`."""
        names = [f"{name}/{part}" for part in outputs]
        self._add_node(name, "Split", [value], names, {"axis": axis, "num_outputs": len(names)})
        return tuple(names)

    def widen(self, value: str) -> str:
        """Enter an FP32 island; nothing to do where the graph computes in FP32."""
        if self.dtype is FP32:
            return value
        return self.op(f"{value}/to_fp32", "Cast", value, attributes={"to": FP32.onnx})

    def narrow(self, value: str) -> str:
        """Leave an FP32 island; nothing to do where the graph computes in FP32."""
        if self.dtype is FP32:
            return value
        return self.op(f"{value}/to_{self.dtype.name}", "Cast", value, attributes={"to": self.dtype.onnx})

    def constant(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A small constant inside the ONNX file; one that exists already under this name is used again."""
        tensor = numpy_helper.from_array(np.asarray(values, dtype=dtype), name)
        known = self._initializers.setdefault(name, tensor)
        if known != tensor:
            raise ValueError(f"{name}: another constant has this name")
        return name

    def weight(self, name: str, source: WeightSource, shape: tuple[int, ...], *, dtype: DType | None = None) -> str:
        """Plan a weight in the external file, in the graph's type unless `dtype` is given."""
        kind = dtype or self.dtype
        self.weights.append(Weight(name, kind, shape, self._place(name, kind, shape), source))
        return name

    def quantized_weight(
        self, name: str, source: WeightSource, shape: tuple[int, ...], quantization: Quantization
    ) -> str:
        """Plan a weight that is stored quantised, with its scale; returns its value in the graph's type."""
        stored, scale = quantization.stored, f"{name}/scale"
        offset = self._place(name, stored, shape)
        scale_offset = self._place(scale, self.dtype, shape[:1] if quantization.per_row else ())
        placed = WeightScale(quantization, self.dtype, scale_offset)
        self.weights.append(Weight(name, stored, shape, offset, source, placed))
        axis = {"axis": 0} if quantization.per_row else None
        return self.op(f"{name}/dequantized", "DequantizeLinear", name, scale, attributes=axis)

    def quantized_value(self, name: str, value: str, scale: float, quantization: Quantization) -> str:
        """Round a value to the codes of one scale, and back to the graph's type.

        The zero point is there to tell QuantizeLinear the type of the codes; DequantizeLinear needs none.
        """
        kind, zero_kind = (helper.tensor_dtype_to_np_dtype(dtype.onnx) for dtype in (self.dtype, quantization.stored))
        step = self.constant(f"{name}/scale", scale, kind)
        zero = self.constant("constants/zero_point", 0, zero_kind)
        codes = self.op(f"{name}/quantized", "QuantizeLinear", value, step, zero)
        return self.op(f"{name}/dequantized", "DequantizeLinear", codes, step)

    def model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], *, doc: str, version: str
    ) -> ModelProto:
        """The finished model; weights refer to the external file."""
        graph = helper.make_graph(
            self._nodes, name, list(inputs), list(outputs), list(self._initializers.values()), doc_string=doc
        )
        return helper.make_model(
            graph,
            producer_name="nvlm-trt",
            producer_version=version,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )

    def _place(self, name: str, dtype: DType, shape: tuple[int, ...]) -> int:
        """Declare an initializer at the next page of the external file; returns its offset."""
        if name in self._initializers:
            raise ValueError(f"{name}: another initializer has this name")
        offset, length = -(-self._data_bytes // ALIGNMENT) * ALIGNMENT, _nbytes(dtype, shape)
        tensor = TensorProto(name=name, data_type=dtype.onnx, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._data_file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        self._data_bytes = offset + length
        return offset

    def _add_node(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None,
    ) -> None:
        node = NodeProto(name=name, op_type=op_type, input=inputs, output=outputs)
        for key, value in (attributes or {}).items():
            attribute: AttributeProto = helper.make_attribute(key, value)
            node.attribute.append(attribute)
        self._nodes.append(node)


def _nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
