"""Qwen2 in torch with the prompt table, as transformers 4.39.3 computes it.

Full causal attention and plain RoPE: up to 32,768 tokens the released `rope_scaling` changes nothing, and the 4,096
window of that version's eager path is not what the model was trained with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import rms_norm
from nvlm_trt.model.tensors import DECODER_EMBEDDING, DECODER_HEAD, DECODER_NORM, DECODER_PREFIX, decoder_layer

Ids = Sequence[int] | npt.NDArray[np.int32]
Table = torch.Tensor | npt.NDArray[np.float32] | None


@dataclass(slots=True)
class KvCache:
    """Keys and values of the tokens so far: one [kv heads, tokens, head_dim] pair a layer."""

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    length: int = 0

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens of a layer and return all of its keys and values."""
        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k, v = torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1)
        self.layers[layer] = k, v
        return k, v


class DecoderReference:
    """Ids and a prompt table to logits.

    Args:
        checkpoint: An opened checkpoint; all decoder weights are held in memory.
        dtype: float32 for the oracle, bfloat16 for the released arithmetic.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        self.config = checkpoint.config.decoder
        self.dtype = dtype
        self._weights = {
            name: checkpoint.read(name, dtype) for name in checkpoint.tensors if name.startswith(DECODER_PREFIX)
        }

    def logits(self, ids: Ids, table: Table = None) -> torch.Tensor:
        """Logits of every position.

        Args:
            ids: [t]; an id at or above vocab_size takes row ``id - vocab_size`` of the table.
            table: [rows, hidden] prompt table, or None for text.

        Returns:
            float32 [t, vocab_size].
        """
        with torch.inference_mode():
            return self._head(self._forward(self.embed(ids, table), KvCache()))

    def greedy(self, ids: Ids, table: Table = None, *, max_tokens: int, stop_ids: Collection[int] = ()) -> list[int]:
        """Greedy continuation of at most `max_tokens` tokens; a stop id ends it and is not returned."""
        return [token for token, _ in self.greedy_steps(ids, table, max_tokens=max_tokens, stop_ids=stop_ids)]

    def greedy_steps(
        self, ids: Ids, table: Table = None, *, max_tokens: int, stop_ids: Collection[int] = ()
    ) -> list[tuple[int, torch.Tensor]]:
        """As `greedy`, each token with the float32 [vocab_size] logits that it was taken from."""
        steps: list[tuple[int, torch.Tensor]] = []
        cache = KvCache()
        with torch.inference_mode():
            hidden = self.embed(ids, table)
            while len(steps) < max_tokens:
                logits = self._head(self._forward(hidden, cache)[-1:])[0]
                token = int(logits.argmax())
                if token in stop_ids:
                    break
                steps.append((token, logits))
                hidden = self.embed([token], None)
        return steps

    def embed(self, ids: Ids, table: Table) -> torch.Tensor:
        """Rows of the embedding, and of the prompt table for ids at or above vocab_size: [t, hidden]."""
        index = torch.as_tensor(np.asarray(ids, dtype=np.int64))
        visual = index >= self.config.vocab_size
        hidden = F.embedding(index.masked_fill(visual, 0), self._weights[DECODER_EMBEDDING]).clone()
        if table is not None and bool(visual.any()):
            rows = torch.as_tensor(table).to(self.dtype)
            hidden[visual] = rows[index[visual] - self.config.vocab_size]
        return hidden

    def _forward(self, hidden: torch.Tensor, cache: KvCache) -> torch.Tensor:
        cos, sin = rope_table(self.config.head_dim, self.config.rope_theta, cache.length, hidden.shape[0], self.dtype)
        eps = self.config.rms_norm_eps
        for index in range(self.config.num_layers):
            layer, weights = decoder_layer(index), self._weights
            normed = rms_norm(hidden, weights[f"{layer}input_layernorm.weight"], eps)
            hidden = hidden + self._attention(index, normed, cos, sin, cache)
            normed = rms_norm(hidden, weights[f"{layer}post_attention_layernorm.weight"], eps)
            gate = F.silu(F.linear(normed, weights[f"{layer}mlp.gate_proj.weight"]))
            wide = gate * F.linear(normed, weights[f"{layer}mlp.up_proj.weight"])
            hidden = hidden + F.linear(wide, weights[f"{layer}mlp.down_proj.weight"])
        cache.length += hidden.shape[0]
        return rms_norm(hidden, self._weights[DECODER_NORM], eps)

    def _attention(
        self, index: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KvCache
    ) -> torch.Tensor:
        config = self.config
        prefix = f"{decoder_layer(index)}self_attn."
        q, k, v = (
            F.linear(x, self._weights[f"{prefix}{part}_proj.weight"], self._weights[f"{prefix}{part}_proj.bias"])
            .view(len(x), -1, config.head_dim)
            .transpose(0, 1)
            for part in "qkv"
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = cache.extend(index, k, v)
        group = config.num_heads // config.num_kv_heads
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
        scores = q @ k.transpose(-2, -1) / config.head_dim**0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + scores.shape[-1] - scores.shape[-2])
        weights = scores.masked_fill(future, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=torch.float32)
        mixed = (weights.to(x.dtype) @ v).transpose(0, 1).reshape(len(x), -1)
        return F.linear(mixed, self._weights[f"{prefix}o_proj.weight"])

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self._weights[DECODER_HEAD]).float()


def rope_table(
    head_dim: int, theta: float, start: int, count: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [count, head_dim] of positions from `start` on: computed in float32, cast before use."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    angles = torch.outer(torch.arange(start, start + count).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding on halves (GPT-NeoX style): x [heads, t, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
