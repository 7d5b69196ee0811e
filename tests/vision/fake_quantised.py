"""A fake-quantised torch model of the vision encoder, with rounding of its own: what quantised graphs must compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

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
from nvlm_trt.vision.scales import VisionScales

Floats = npt.NDArray[np.float32]


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
        self.weight_limit = self.limit if scales.weight_limit is None else np.float32(scales.weight_limit)
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
        step = self.settle(largest / self.weight_limit)
        input_step = self.settle(np.float32(self.amax[linear]) / self.limit)
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


def rms(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
