"""Names and shapes of the tensors of an NVLM-D checkpoint: their one home.

Source: model.safetensors.index.json of nvidia/NVLM-D-72B and the modules that load it (modeling_nvlm_d.py,
modeling_intern_vit.py, transformers' Qwen2).
"""

from __future__ import annotations

from nvlm_trt.model.config import NvlmConfig

VISION_PREFIX = "vision_model."
PROJECTOR_PREFIX = "mlp1."
DECODER_PREFIX = "language_model."

DECODER_EMBEDDING = f"{DECODER_PREFIX}model.embed_tokens.weight"
DECODER_NORM = f"{DECODER_PREFIX}model.norm.weight"
DECODER_HEAD = f"{DECODER_PREFIX}lm_head.weight"

Shape = tuple[int, ...]


def vision_layer(index: int) -> str:
    """Prefix of the tensors of one ViT block."""
    return f"{VISION_PREFIX}encoder.layers.{index}."


def decoder_layer(index: int) -> str:
    """Prefix of the tensors of one decoder layer."""
    return f"{DECODER_PREFIX}model.layers.{index}."


def expected_tensors(config: NvlmConfig, dummy_heads: int) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this configuration holds, with its shape, in the order of the forward pass.

    Args:
        config: The model's configuration.
        dummy_heads: All-zero attention heads appended to the real ones of every ViT block (7 in the release).
    """
    return {
        **vision_tensors(config, dummy_heads),
        **projector_tensors(config),
        **decoder_tensors(config),
    }


def vision_tensors(config: NvlmConfig, dummy_heads: int) -> dict[str, Shape]:
    """Names and shapes of InternViT; `ls1` and `ls2` (LayerScale) carry no ``.weight``."""
    vision = config.vision
    hidden, wide = vision.hidden_size, vision.intermediate_size
    attention = (vision.num_heads + dummy_heads) * vision.head_dim
    embeddings = f"{VISION_PREFIX}embeddings."
    shapes: dict[str, Shape] = {
        f"{embeddings}class_embedding": (1, 1, hidden),
        f"{embeddings}patch_embedding.weight": (hidden, 3, vision.patch_size, vision.patch_size),
        f"{embeddings}patch_embedding.bias": (hidden,),
        f"{embeddings}position_embedding": (1, vision.patches_per_side**2 + 1, hidden),
    }
    for index in range(vision.num_layers):
        layer = vision_layer(index)
        shapes |= {
            f"{layer}norm1.weight": (hidden,),
            f"{layer}attn.qkv.weight": (3 * attention, hidden),
            f"{layer}attn.q_norm.weight": (attention,),
            f"{layer}attn.k_norm.weight": (attention,),
            f"{layer}attn.proj.weight": (hidden, attention),
            f"{layer}attn.proj.bias": (hidden,),
            f"{layer}ls1": (hidden,),
            f"{layer}norm2.weight": (hidden,),
            f"{layer}mlp.fc1.weight": (wide, hidden),
            f"{layer}mlp.fc1.bias": (wide,),
            f"{layer}mlp.fc2.weight": (hidden, wide),
            f"{layer}mlp.fc2.bias": (hidden,),
            f"{layer}ls2": (hidden,),
        }
    return shapes


def projector_tensors(config: NvlmConfig) -> dict[str, Shape]:
    """Names and shapes of the projector: LayerNorm, Linear, GELU, Linear; neither Linear has a bias."""
    return {
        f"{PROJECTOR_PREFIX}0.weight": (config.projector_in,),
        f"{PROJECTOR_PREFIX}0.bias": (config.projector_in,),
        f"{PROJECTOR_PREFIX}1.weight": (config.projector_hidden, config.projector_in),
        f"{PROJECTOR_PREFIX}3.weight": (config.decoder.hidden_size, config.projector_hidden),
    }


def decoder_tensors(config: NvlmConfig) -> dict[str, Shape]:
    """Names and shapes of Qwen2: biases on q, k and v only, lm_head not tied to the embedding."""
    decoder = config.decoder
    hidden, wide, vocabulary = decoder.hidden_size, decoder.intermediate_size, decoder.vocab_size
    queries, keys = decoder.query_width, decoder.kv_width
    shapes: dict[str, Shape] = {DECODER_EMBEDDING: (vocabulary, hidden)}
    for index in range(decoder.num_layers):
        layer = decoder_layer(index)
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (queries, hidden),
            f"{layer}self_attn.q_proj.bias": (queries,),
            f"{layer}self_attn.k_proj.weight": (keys, hidden),
            f"{layer}self_attn.k_proj.bias": (keys,),
            f"{layer}self_attn.v_proj.weight": (keys, hidden),
            f"{layer}self_attn.v_proj.bias": (keys,),
            f"{layer}self_attn.o_proj.weight": (hidden, queries),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (wide, hidden),
            f"{layer}mlp.up_proj.weight": (wide, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, wide),
        }
    shapes[DECODER_NORM] = (hidden,)
    shapes[DECODER_HEAD] = (vocabulary, hidden)
    return shapes
