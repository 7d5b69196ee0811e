"""One decoder layer in torch with a view of what enters its linear layers and its KV cache.

The arithmetic is bfloat16, as released and as the engines compute what is not quantised: calibration shall see the
values that the engine's linear layers see. Attention is torch's fused one, whose memory doesn't grow with the square of
the tokens; it sums in float32, so that it rounds at other places than the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.reference.decoder import rope_table, rotate
from nvlm_trt.model.reference.vision import rms_norm

LINEARS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "dense": ("self_attn.o_proj.weight",),
    "fc": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "proj": ("mlp.down_proj.weight",),
}
"""Weights that share an input, and so its scales, by TensorRT-LLM's name; "fc" stands for fc and gate there."""

KV = "kv"
"""What `DecoderLayer` calls keys and values."""

Observe = Callable[[str, torch.Tensor], None]
"""Shown the input [t, in] of a key of LINEARS, or as `KV` a value or key [..., t, head_dim]."""


class DecoderLayer:
    """One layer of Qwen2, causal over one sample.

    Args:
        config: The decoder.
        weights: Its tensors, by the rest of their names after the layer's prefix.
        observe: Shown the inputs. Keys are shown before and after RoPE: TensorRT-LLM quantises what comes after it,
            Model Optimizer calibrated what comes before, and RoPE may enlarge a value by up to the square root of 2.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, torch.Tensor], observe: Observe) -> None:
        self._config = config
        self._weights = weights
        self._observe = observe

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [t, hidden] after the layer, from those before it."""
        eps, weights = self._config.rms_norm_eps, self._weights
        hidden = hidden + self._attention(rms_norm(hidden, weights["input_layernorm.weight"], eps))
        return hidden + self._mlp(rms_norm(hidden, weights["post_attention_layernorm.weight"], eps))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        self._observe("qkv", x)
        config, count = self._config, len(x)
        q, k, v = (
            F.linear(x, self._weights[f"self_attn.{part}_proj.weight"], self._weights[f"self_attn.{part}_proj.bias"])
            .view(count, -1, config.head_dim)
            .transpose(0, 1)
            for part in "qkv"
        )
        cos, sin = (part.to(x.device) for part in rope_table(config.head_dim, config.rope_theta, 0, count, x.dtype))
        self._observe(KV, k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self._observe(KV, k)
        self._observe(KV, v)
        group = config.num_heads // config.num_kv_heads
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        mixed = mixed.transpose(0, 1).reshape(count, -1)
        self._observe("dense", mixed)
        return F.linear(mixed, self._weights["self_attn.o_proj.weight"])

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        self._observe("fc", x)
        wide = F.silu(F.linear(x, self._weights["mlp.gate_proj.weight"]))
        wide *= F.linear(x, self._weights["mlp.up_proj.weight"])
        self._observe("proj", wide)
        return F.linear(wide, self._weights["mlp.down_proj.weight"])
