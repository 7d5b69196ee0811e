"""Weights as OpenVINO constants, in the precision that the engine keeps them in memory.

8-bit weights follow TensorRT-LLM's W8A16 rule (facts: weights [out, in], one symmetric scale per output channel):
``w[out, in] ~= int8 * scale[out]``. 4-bit weights have one scale for every group of neighbouring inputs, because
16 codes for a whole row would cost too much: ``w[out, in] ~= int4 * scale[out, in // group]``. OpenVINO recognises
Constant (i8 or i4) -> Convert -> Multiply (-> Reshape) in front of a MatMul, keeps the weight compressed in memory and
widens it inside its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as ops

from nvlm_trt.errors import BuildError


@dataclass(frozen=True, slots=True)
class Storage:
    """How a decoder's matrices are kept: each "fp32", "bf16", "int8_wo" or "int4_wo".

    Attributes:
        layers: Those of the layers.
        output: The output matrix. It chooses the token, so it keeps 8 bits where layers have 4.
        embedding: Its rows are looked up, never multiplied, so 8 bits would cost fidelity and save nothing per step.
    """

    layers: str
    output: str
    embedding: str


STORAGE: Mapping[str, Storage] = {
    "fp32": Storage("fp32", "fp32", "fp32"),
    "bf16": Storage("bf16", "bf16", "bf16"),
    "int8_wo": Storage("int8_wo", "int8_wo", "bf16"),
    "int8": Storage("int8_wo", "int8_wo", "bf16"),
    "int4_wo": Storage("int4_wo", "int8_wo", "bf16"),
}
"""What a decoder engine of the cpu target can be built in. int8 keeps what int8_wo keeps: it is run otherwise."""

INT8_LIMIT = 127

INT4_LIMIT = -8
"""The code of the value with the largest magnitude in a group, whatever its sign: the scale takes it over. So all 16
codes are used, and steps are an eighth of that magnitude; codes from -7 to 7 would make them a seventh."""

GROUP_SIZE = 64
"""Input channels that share a scale of 4-bit weights: 4.5 bits a weight, scale included. Where it does not divide a
width, a narrower group does."""

LEAST_GROUP = 16
"""With smaller groups codes and scales together would be 8 bits a weight."""

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
        precision: A member of a Storage.

    Raises:
        BuildError: the weight holds a value that is not finite, or the precision is unknown.
    """
    if precision == "bf16":
        return _converted(bf16_constant(tensor, name), name)
    _check_finite(tensor, name)
    if precision == "fp32":
        return float_constant(tensor, name)
    if precision == "int8_wo":
        return _int8_constant(tensor, name)
    if precision == "int4_wo":
        return _int4_constant(tensor, name)
    raise BuildError("the precision is unknown", seen=precision, expected="fp32 | bf16 | int8_wo | int4_wo")


def bf16_constant(tensor: torch.Tensor, name: str) -> ov.Output:
    """A matrix [out, in] in bf16 as it is, for products that are bf16 themselves.

    Raises:
        BuildError: the weight holds a value that is not finite.
    """
    _check_finite(tensor, name)
    bits = tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    packed = ov.Tensor(ov.Type.bf16, ov.Shape(list(tensor.shape)))
    packed.data.view(np.int16)[:] = bits  # numpy has no bf16: OpenVINO shows such a tensor as two-byte words
    return _constant(packed, f"{name}.bf16")


def quantize_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per output channel.

    Returns:
        (int8 [out, in], float32 scales [out, 1]); a row of zeros has the scale 1.
    """
    rows = tensor.to(torch.float32)
    peak = rows.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / INT8_LIMIT, torch.ones_like(peak))
    return torch.round(rows / scale).clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8), scale


def group_size(inputs: int) -> int:
    """Input channels that share a scale of 4-bit weights, where a matrix has so many inputs."""
    return math.gcd(inputs, GROUP_SIZE)


def quantize_groups(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric 4 bits per group of input channels.

    Args:
        tensor: [out, in], any float dtype.

    Returns:
        (int8 [out, groups, group] of -8 to 7, float32 scales [out, groups, 1], which may be negative); a group of zeros
        has the scale 1.
    """
    groups = tensor.to(torch.float32).reshape(len(tensor), -1, group_size(tensor.shape[1]))
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = torch.where(largest != 0, largest / INT4_LIMIT, torch.ones_like(largest))
    return torch.round(groups / scale).clamp(INT4_LIMIT, -INT4_LIMIT - 1).to(torch.int8), scale


def _check_finite(tensor: torch.Tensor, name: str) -> None:
    if not all(bool(torch.isfinite(tensor[rows]).all()) for rows in _row_blocks(tensor)):
        raise BuildError(f"the weight {name} holds values that are not finite", fix="check the checkpoint")


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


def _int4_constant(tensor: torch.Tensor, name: str) -> ov.Output:
    outputs, inputs = tensor.shape
    shape = (outputs, inputs // group_size(inputs), group_size(inputs))
    weight = ov.Tensor(ov.Type.i4, ov.Shape(list(shape)))
    pairs = weight.data.view(np.uint8).reshape(outputs, inputs // 2)  # two codes a byte, the first one in its low half
    scale = torch.empty(*shape[:2], 1)
    for rows in _row_blocks(tensor):
        quantized, scale[rows] = quantize_groups(tensor[rows])
        halves = quantized.flatten(1).numpy().view(np.uint8) & 0x0F
        pairs[rows] = halves[:, 0::2] | halves[:, 1::2] << 4
    packed = _constant(weight, f"{name}.int4")
    scaled = ops.multiply(_converted(packed, f"{name}.convert"), float_constant(scale, f"{name}.scale"))
    flat = ops.reshape(scaled, ops.constant(np.array([outputs, inputs], np.int64)), special_zero=False)
    flat.set_friendly_name(name)
    return flat.output(0)


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
