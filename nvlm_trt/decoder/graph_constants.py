"""Weights as OpenVINO constants, in the precision that the engine keeps them in memory.

int8 weight-only follows TensorRT-LLM's W8A16 rule (facts: weights [out, in], one symmetric scale per output channel,
activations never quantised): ``w ~= int8 * scale[out]``. OpenVINO recognises Constant(i8) -> Convert -> Multiply in
front of a MatMul and keeps the weight compressed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as ops

from nvlm_trt.errors import BuildError

PRECISIONS = ("fp32", "bf16", "int8_wo")
"""What a decoder engine of the cpu target can be built in."""

INT8_LIMIT = 127

BLOCK_VALUES = 1 << 23
"""Values checked and rounded at a time: an embedding of 72B is 1.2e9 of them, and float32 copies of it add up."""


def float_constant(tensor: torch.Tensor, name: str) -> ov.Output:
    """A small float32 constant (norms, biases, tables) that no precision touches."""
    array = tensor.detach().to(torch.float32).contiguous().numpy()
    return _constant(ov.Tensor(array, shared_memory=False), name)


def matrix_constant(tensor: torch.Tensor, name: str, precision: str) -> ov.Output:
    """A matrix [out, in] as a float32 output, kept in memory in `precision`.

    Args:
        tensor: The joined weight, any float dtype.
        name: Name of the constant in the graph.
        precision: "fp32", "bf16", or "int8_wo".

    Raises:
        BuildError: the weight holds a value that is not finite, or the precision is unknown.
    """
    if not all(bool(torch.isfinite(tensor[rows]).all()) for rows in _row_blocks(tensor)):
        raise BuildError(f"the weight {name} holds values that are not finite", fix="check the checkpoint")
    if precision == "fp32":
        return float_constant(tensor, name)
    if precision == "bf16":
        return _bf16_constant(tensor, name)
    if precision == "int8_wo":
        return _int8_constant(tensor, name)
    raise BuildError("the precision is unknown", seen=precision, expected=PRECISIONS)


def quantize_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per output channel.

    Returns:
        (int8 [out, in], float32 scales [out, 1]); a row of zeros has the scale 1.
    """
    rows = tensor.to(torch.float32)
    peak = rows.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / INT8_LIMIT, torch.ones_like(peak))
    return torch.round(rows / scale).clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8), scale


def _bf16_constant(tensor: torch.Tensor, name: str) -> ov.Output:
    bits = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    packed = ov.Tensor(ov.Type.bf16, ov.Shape(list(tensor.shape)))
    packed.data.view(np.int16)[:] = bits  # numpy has no bf16: OpenVINO shows such a tensor as two-byte words
    return _converted(_constant(packed, f"{name}.bf16"), name)


def _int8_constant(tensor: torch.Tensor, name: str) -> ov.Output:
    weight = ov.Tensor(ov.Type.i8, ov.Shape(list(tensor.shape)))
    scale = torch.empty(tensor.shape[0], 1)
    for rows in _row_blocks(tensor):
        quantized, scale[rows] = quantize_rows(tensor[rows])
        weight.data[rows] = quantized.numpy()
    packed = _constant(weight, f"{name}.int8")
    scaled = ops.multiply(_converted(packed, f"{name}.convert"), float_constant(scale, f"{name}.scale"))
    scaled.set_friendly_name(name)
    return scaled.output(0)


def _row_blocks(tensor: torch.Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_VALUES // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        yield slice(start, min(start + step, tensor.shape[0]))


def _converted(source: ov.Output, name: str) -> ov.Output:
    node = ops.convert(source, np.float32)
    node.set_friendly_name(name)
    return node.output(0)


def _constant(tensor: ov.Tensor, name: str) -> ov.Output:
    node = ov.op.Constant(tensor)
    node.set_friendly_name(name)
    return node.output(0)
