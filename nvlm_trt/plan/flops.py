"""Floating-point operations of the parts, counted from shapes; a multiplication with an addition is two.

Norms, activations, softmax and rotations are left out: they are bound by memory and small beside the matrix products.
"""

from __future__ import annotations

import math

from nvlm_trt.model.config import DecoderConfig, NvlmConfig
from nvlm_trt.model.tensors import projector_tensors


def encoder_flops_per_tile(config: NvlmConfig, dummy_heads: int = 0) -> int:
    """FLOPs of InternViT for one tile.

    ``L [2n (3ha + ah + 2hm) + 4n^2 a] + 2 (n - 1) (3p^2) h`` with n tokens (patches and class token), width h,
    attention width a = heads x head width, MLP width m, L layers and patches of p x p pixels (modeling_intern_vit.py).

    Args:
        config: The model.
        dummy_heads: Heads besides the real ones; engines have none, as the export strips them.
    """
    vision = config.vision
    patches, hidden = vision.patches_per_side**2, vision.hidden_size
    tokens, attention = patches + 1, (vision.num_heads + dummy_heads) * vision.head_dim
    linear = 4 * hidden * attention + 2 * hidden * vision.intermediate_size
    layer = 2 * tokens * linear + 4 * tokens**2 * attention
    return vision.num_layers * layer + 2 * patches * 3 * vision.patch_size**2 * hidden


def projector_flops_per_tile(config: NvlmConfig) -> int:
    """FLOPs of the projector for one tile: ``2 x tokens x`` the elements of its two matrices."""
    matrices = [shape for shape in projector_tensors(config).values() if len(shape) == 2]
    return 2 * config.tokens_per_tile * sum(map(math.prod, matrices))


def vision_flops_per_tile(config: NvlmConfig, dummy_heads: int = 0) -> int:
    """FLOPs of encoder and projector for one tile."""
    return encoder_flops_per_tile(config, dummy_heads) + projector_flops_per_tile(config)


def layer_elements(decoder: DecoderConfig) -> int:
    """Elements of the matrices of one decoder layer: q, k, v, o, gate, up, down."""
    attention = decoder.hidden_size * 2 * (decoder.query_width + decoder.kv_width)
    return attention + 3 * decoder.hidden_size * decoder.intermediate_size


def attention_flops(decoder: DecoderConfig, tokens: int) -> int:
    """FLOPs of causal attention over a prompt: ``L x 4a x n (n + 1) / 2``, scores and mixing of what a token sees."""
    return decoder.num_layers * 4 * decoder.query_width * tokens * (tokens + 1) // 2


def prefill_flops(decoder: DecoderConfig, tokens: int) -> int:
    """FLOPs of reading a prompt: ``2n x`` all layers' matrices, attention, and lm_head for the last token."""
    linear = 2 * tokens * decoder.num_layers * layer_elements(decoder)
    return linear + attention_flops(decoder, tokens) + 2 * decoder.hidden_size * decoder.vocab_size


def decode_flops(decoder: DecoderConfig, context: int) -> int:
    """FLOPs of one token of one request that sees `context` tokens, itself included."""
    linear = 2 * (decoder.num_layers * layer_elements(decoder) + decoder.hidden_size * decoder.vocab_size)
    return linear + decoder.num_layers * 4 * decoder.query_width * context
