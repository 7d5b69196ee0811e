"""InternViT, pixel shuffle and projector in torch, step by step as released.

Source: modeling_intern_vit.py and modeling_nvlm_d.py of nvidia/NVLM-D-72B. In bfloat16 every product and sum rounds
where the released code rounds; in float32 it is the oracle for engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tensors import PROJECTOR_PREFIX, VISION_PREFIX, vision_layer

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
PROJECTOR_NORM_EPS = 1e-5
"""torch's default for nn.LayerNorm, which the released projector uses; the decoder's norms have 1e-6."""

Observe = Callable[[str, torch.Tensor], None]
"""Shown the input [..., in] of a linear layer under the layer's name in the ONNX graph (nvlm_trt/vision/graph.py)."""


class VisionReference:
    """Tiles to prompt-table rows.

    Args:
        checkpoint: An opened checkpoint; dummy heads are computed as released, not stripped.
        dtype: float32 for the oracle, bfloat16 for the released arithmetic.
        weights: Where weights are looked up when they are used; None reads all of them and keeps them in memory.
        observe: Shown the input of every linear layer, dummy heads left out as in the graph.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.config = checkpoint.config
        self.dtype = dtype
        self._dummy_heads = checkpoint.dummy_heads
        self._observe = observe
        if weights is None:
            names = (name for name in checkpoint.tensors if name.startswith((VISION_PREFIX, PROJECTOR_PREFIX)))
            weights = {name: checkpoint.read(name, dtype) for name in names}
        self._weights = weights

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Encode tiles.

        Args:
            tiles: uint8 [n, s, s, 3].

        Returns:
            [n, tokens_per_tile, decoder hidden size] in `dtype`.
        """
        with torch.inference_mode():
            hidden = self.embed(normalise(tiles).to(self.dtype))
            for index in range(self.config.vision.num_layers):
                hidden = self.block(index, hidden)
            return self.project(pixel_shuffle(hidden[:, 1:], self.config.shuffle))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches, class token and position embedding: [n, 3, s, s] -> [n, 1 + patches, hidden]."""
        prefix = f"{VISION_PREFIX}embeddings."
        patch = self.config.vision.patch_size
        grid = F.conv2d(
            pixels,
            self._weights[f"{prefix}patch_embedding.weight"],
            self._weights[f"{prefix}patch_embedding.bias"],
            stride=patch,
        )
        patches = grid.flatten(2).transpose(1, 2)
        first = self._weights[f"{prefix}class_embedding"].expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self._weights[f"{prefix}position_embedding"]

    def block(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """One ViT block; LayerScale multiplies each branch."""
        layer, weights = vision_layer(index), self._weights
        eps = self.config.vision.layer_norm_eps
        attended = self.attention(index, rms_norm(hidden, weights[f"{layer}norm1.weight"], eps))
        hidden = hidden + attended * weights[f"{layer}ls1"]
        normed = rms_norm(hidden, weights[f"{layer}norm2.weight"], eps)
        self._show(f"{_graph_layer(index)}/mlp/fc1", normed)
        wide = F.gelu(two_step_linear(normed, weights[f"{layer}mlp.fc1.weight"], weights[f"{layer}mlp.fc1.bias"]))
        self._show(f"{_graph_layer(index)}/mlp/fc2", wide)
        back = two_step_linear(wide, weights[f"{layer}mlp.fc2.weight"], weights[f"{layer}mlp.fc2.bias"])
        return hidden + back * weights[f"{layer}ls2"]

    def attention(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Attention over real and dummy heads; q and k are normalised over all heads at once, before the split."""
        layer, weights, vision = vision_layer(index), self._weights, self.config.vision
        count, length, _ = hidden.shape
        self._show(f"{_graph_layer(index)}/attention/qkv", hidden)
        q, k, v = F.linear(hidden, weights[f"{layer}attn.qkv.weight"]).chunk(3, dim=-1)
        q = qk_norm(q, weights[f"{layer}attn.q_norm.weight"], vision.hidden_size, vision.layer_norm_eps)
        k = qk_norm(k, weights[f"{layer}attn.k_norm.weight"], vision.hidden_size, vision.layer_norm_eps)
        heads = vision.num_heads + self._dummy_heads
        q, k, v = (part.view(count, length, heads, vision.head_dim).transpose(1, 2) for part in (q, k, v))
        scores = (q * vision.head_dim**-0.5) @ k.transpose(-2, -1)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(count, length, -1)
        self._show(f"{_graph_layer(index)}/attention/proj", mixed[..., : vision.hidden_size])
        return two_step_linear(mixed, weights[f"{layer}attn.proj.weight"], weights[f"{layer}attn.proj.bias"])

    def project(self, shuffled: torch.Tensor) -> torch.Tensor:
        """LayerNorm, Linear, GELU (erf), Linear: [n, tokens, projector_in] -> [n, tokens, decoder hidden]."""
        weights = self._weights
        scale, shift = weights[f"{PROJECTOR_PREFIX}0.weight"], weights[f"{PROJECTOR_PREFIX}0.bias"]
        normed = F.layer_norm(shuffled, (self.config.projector_in,), scale, shift, PROJECTOR_NORM_EPS)
        self._show("projector/fc1", normed)
        wide = F.gelu(F.linear(normed, weights[f"{PROJECTOR_PREFIX}1.weight"]))
        self._show("projector/fc2", wide)
        return F.linear(wide, weights[f"{PROJECTOR_PREFIX}3.weight"])

    def _show(self, linear: str, x: torch.Tensor) -> None:
        if self._observe is not None:
            self._observe(linear, x)


def _graph_layer(index: int) -> str:
    """Name of a ViT block in the ONNX graph."""
    return f"vision/layer_{index:02d}"


def normalise(tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, s, s, 3] -> float32 [n, 3, s, s], ImageNet mean and deviation (ToTensor and Normalize of the card)."""
    pixels = torch.from_numpy(tiles.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return ((pixels - mean) / deviation).contiguous()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm in float32, cast back before the weight."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


def qk_norm(x: torch.Tensor, weight: torch.Tensor, real: int, eps: float) -> torch.Tensor:
    """RMSNorm over all heads whose mean square is taken over the `real` first values only, dummy heads left out."""
    wide = x.float()
    variance = wide[..., :real].square().sum(dim=-1, keepdim=True) / real
    return (wide * torch.rsqrt(variance + eps)).to(x.dtype) * weight


def two_step_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A product and then a sum: two roundings, as the released matmul(x, W^T) + bias."""
    return torch.matmul(x, weight.t()) + bias


def pixel_shuffle(patches: torch.Tensor, factor: int) -> torch.Tensor:
    """Fold each square of `factor` x `factor` patches into one token (ps_version v2).

    ``y[a, b, p, q, c] = x[factor * a + p, factor * b + q, c]``: rows of the square are the slow index.

    Args:
        patches: [n, side * side, c], row-major.
        factor: Side of the square, 2 in the release.

    Returns:
        [n, (side / factor)^2, factor^2 * c].
    """
    count, length, channels = patches.shape
    side = round(length**0.5)
    grid = patches.reshape(count, side // factor, factor, side // factor, factor, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(count, (side // factor) ** 2, factor * factor * channels)
