"""What a rank holds in every precision, against what TensorRT-LLM's own Qwen2 classes demand.

The lists were printed by those classes for Qwen2-72B's widths at tp 4, one layer, the MLP padded to 29696. They show
parameters as they are after loading: what loading changes is changed back here.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nvlm_trt.decoder.precision import PRECISIONS, Precision, decoder_precision
from nvlm_trt.decoder.trtllm_layout import Rank, rank_parameters
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.synthetic import like_72b

LAYER = "transformer.layers.0."
WORDS = {"BF16": "BF16", "FLOAT": "F32", "INT8": "I8", "FP8": "F8_E4M3"}
LINE = re.compile(r"(?P<buffer>\(buffer\) )?(?P<name>\S+) \((?P<shape>[\d, ]+)\) (?P<word>\S+)")

Held = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype by name."""

PLAIN = """
  (buffer) embed_positions (1, 32768, 128) FLOAT
  (buffer) rotary_inv_freq (64,) FLOAT
  (buffer) embed_positions_for_gpt_attention (1, 4194304) FLOAT
  transformer.vocab_embedding.weight (152064, 8192) BF16
  transformer.layers.0.input_layernorm.weight (8192,) BF16
  transformer.layers.0.attention.qkv.weight (2560, 8192) BF16
  transformer.layers.0.attention.qkv.bias (2560,) BF16
  transformer.layers.0.attention.dense.weight (8192, 2048) BF16
  transformer.layers.0.mlp.fc.weight (7424, 8192) BF16
  transformer.layers.0.mlp.proj.weight (8192, 7424) BF16
  transformer.layers.0.mlp.gate.weight (7424, 8192) BF16
  transformer.layers.0.post_layernorm.weight (8192,) BF16
  transformer.ln_f.weight (8192,) BF16
  lm_head.weight (38016, 8192) BF16
"""

FP8_KV_FP8 = """
  transformer.vocab_embedding.weight (152064, 8192) BF16
  transformer.layers.0.input_layernorm.weight (8192,) BF16
  transformer.layers.0.attention.kv_cache_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.kv_cache_rcp_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.qkv.weight (2560, 8192) FP8
  transformer.layers.0.attention.qkv.bias (2560,) BF16
  transformer.layers.0.attention.qkv.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.qkv.weights_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.dense.weight (8192, 2048) FP8
  transformer.layers.0.attention.dense.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.dense.weights_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.fc.weight (7424, 8192) FP8
  transformer.layers.0.mlp.fc.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.fc.weights_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.proj.weight (8192, 7424) FP8
  transformer.layers.0.mlp.proj.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.proj.weights_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.gate.weight (7424, 8192) FP8
  transformer.layers.0.mlp.gate.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.gate.weights_scaling_factor (1,) FLOAT
  transformer.layers.0.post_layernorm.weight (8192,) BF16
  transformer.ln_f.weight (8192,) BF16
  lm_head.weight (38016, 8192) BF16
"""

W8A16 = """
  transformer.vocab_embedding.weight (152064, 8192) BF16
  transformer.layers.0.input_layernorm.weight (8192,) BF16
  transformer.layers.0.attention.qkv.weight (8192, 2560) INT8
  transformer.layers.0.attention.qkv.bias (2560,) BF16
  transformer.layers.0.attention.qkv.per_channel_scale (2560,) BF16
  transformer.layers.0.attention.dense.weight (2048, 8192) INT8
  transformer.layers.0.attention.dense.per_channel_scale (8192,) BF16
  transformer.layers.0.mlp.fc.weight (8192, 7424) INT8
  transformer.layers.0.mlp.fc.per_channel_scale (7424,) BF16
  transformer.layers.0.mlp.proj.weight (7424, 8192) INT8
  transformer.layers.0.mlp.proj.per_channel_scale (8192,) BF16
  transformer.layers.0.mlp.gate.weight (8192, 7424) INT8
  transformer.layers.0.mlp.gate.per_channel_scale (7424,) BF16
  transformer.layers.0.post_layernorm.weight (8192,) BF16
  transformer.ln_f.weight (8192,) BF16
  lm_head.weight (38016, 8192) BF16
"""

AWQ_G128 = """
  transformer.vocab_embedding.weight (152064, 8192) BF16
  transformer.layers.0.input_layernorm.weight (8192,) BF16
  transformer.layers.0.attention.qkv.weight (8192, 640) BF16
  transformer.layers.0.attention.qkv.bias (2560,) BF16
  transformer.layers.0.attention.qkv.weights_scaling_factor (64, 2560) BF16
  transformer.layers.0.attention.qkv.prequant_scaling_factor (1, 8192) BF16
  transformer.layers.0.attention.dense.weight (2048, 2048) BF16
  transformer.layers.0.attention.dense.weights_scaling_factor (16, 8192) BF16
  transformer.layers.0.attention.dense.prequant_scaling_factor (1, 2048) BF16
  transformer.layers.0.mlp.fc.weight (8192, 1856) BF16
  transformer.layers.0.mlp.fc.weights_scaling_factor (64, 7424) BF16
  transformer.layers.0.mlp.fc.prequant_scaling_factor (1, 8192) BF16
  transformer.layers.0.mlp.proj.weight (7424, 2048) BF16
  transformer.layers.0.mlp.proj.weights_scaling_factor (58, 8192) BF16
  transformer.layers.0.mlp.proj.prequant_scaling_factor (1, 7424) BF16
  transformer.layers.0.mlp.gate.weight (8192, 1856) BF16
  transformer.layers.0.mlp.gate.weights_scaling_factor (64, 7424) BF16
  transformer.layers.0.mlp.gate.prequant_scaling_factor (1, 8192) BF16
  transformer.layers.0.post_layernorm.weight (8192,) BF16
  transformer.ln_f.weight (8192,) BF16
  lm_head.weight (38016, 8192) BF16
"""

SMOOTH_QUANT = """
  transformer.vocab_embedding.weight (152064, 8192) BF16
  transformer.layers.0.input_layernorm.weight (8192,) BF16
  transformer.layers.0.attention.qkv.weight (2560, 8192) INT8
  transformer.layers.0.attention.qkv.bias (2560,) BF16
  transformer.layers.0.attention.qkv.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.qkv.weights_scaling_factor (2560,) FLOAT
  transformer.layers.0.attention.qkv.prequant_scaling_factor (8192,) BF16
  transformer.layers.0.attention.dense.weight (8192, 2048) INT8
  transformer.layers.0.attention.dense.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.dense.weights_scaling_factor (8192,) FLOAT
  transformer.layers.0.attention.dense.prequant_scaling_factor (2048,) BF16
  transformer.layers.0.mlp.fc.weight (7424, 8192) INT8
  transformer.layers.0.mlp.fc.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.fc.weights_scaling_factor (7424,) FLOAT
  transformer.layers.0.mlp.fc.prequant_scaling_factor (8192,) BF16
  transformer.layers.0.mlp.proj.weight (8192, 7424) INT8
  transformer.layers.0.mlp.proj.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.proj.weights_scaling_factor (8192,) FLOAT
  transformer.layers.0.mlp.proj.prequant_scaling_factor (7424,) BF16
  transformer.layers.0.mlp.gate.weight (7424, 8192) INT8
  transformer.layers.0.mlp.gate.activation_scaling_factor (1,) FLOAT
  transformer.layers.0.mlp.gate.weights_scaling_factor (7424,) FLOAT
  transformer.layers.0.mlp.gate.prequant_scaling_factor (8192,) BF16
  transformer.layers.0.post_layernorm.weight (8192,) BF16
  transformer.ln_f.weight (8192,) BF16
  lm_head.weight (38016, 8192) BF16
"""

KV_SCALES = """
  transformer.layers.0.attention.kv_cache_scaling_factor (1,) FLOAT
  transformer.layers.0.attention.kv_cache_rcp_scaling_factor (1,) FLOAT
"""


def parsed(text: str) -> Held:
    """The printed list, without what TensorRT-LLM computes itself: buffers and the reciprocal of the kv scale."""
    lines = [LINE.fullmatch(line.strip()) for line in text.splitlines() if line]
    assert all(lines)
    return {
        line["name"]: (tuple(int(size) for size in line["shape"].split(",") if size.strip()), WORDS[line["word"]])
        for line in lines
        if line is not None and not line["buffer"] and not line["name"].endswith("rcp_scaling_factor")
    }


def as_stored_plain(loaded: Held) -> Held:
    """Weight-only layers are quantised while they are loaded: int8 [in, out] was bfloat16 [out, in]."""
    kept = {name: held for name, held in loaded.items() if not name.endswith("per_channel_scale")}
    return {name: (shape[::-1], "BF16") if word == "I8" else (shape, word) for name, (shape, word) in kept.items()}


def as_stored_awq(loaded: Held) -> Held:
    """Loading transposes AWQ's weights and scales, and shows four codes of an input as one bfloat16."""
    stored = dict(loaded)
    for name, (shape, word) in loaded.items():
        if name.endswith("weights_scaling_factor"):
            stored[name] = (shape[::-1], word)
            weight = name.replace("weights_scaling_factor", "weight")
            inputs, quarter = loaded[weight][0]
            stored[weight] = (quarter * 4 // 2, inputs), "I8"
        elif name.endswith("prequant_scaling_factor"):
            stored[name] = (shape[1:], word)
    return stored


def qwen2_72b(intermediate_size: int) -> DecoderConfig:
    return replace(like_72b(1).config.decoder, num_layers=1, intermediate_size=intermediate_size)


def held(precision: Precision, tp: int, index: int, intermediate_size: int) -> Held:
    parameters = rank_parameters(qwen2_72b(intermediate_size), Rank(tp, 1, index), precision)
    names = [parameter.name for parameter in parameters]
    assert len(names) == len(set(names))
    return {parameter.name: (parameter.shape, parameter.dtype) for parameter in parameters}


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("name", "kv_cache", "intermediate_size", "expected"),
    [
        ("bf16", "auto", 29696, parsed(PLAIN)),
        ("fp8", "auto", 29696, parsed(FP8_KV_FP8)),
        ("fp8", "fp8", 29696, parsed(FP8_KV_FP8)),
        ("int8_wo", "auto", 29568, as_stored_plain(parsed(W8A16))),
        ("int4_wo", "auto", 29568, as_stored_plain(parsed(W8A16))),
        ("int4_awq", "auto", 29568, as_stored_awq(parsed(AWQ_G128))),
        ("int8_sq", "auto", 29696, parsed(SMOOTH_QUANT)),
        ("int8_sq", "int8", 29696, parsed(SMOOTH_QUANT + KV_SCALES)),
    ],
)
def test_a_rank_at_72b_widths_holds_what_the_official_classes_demand(
    name: str, kv_cache: str, intermediate_size: int, expected: Held, index: int
) -> None:
    assert held(decoder_precision(name, kv_cache=kv_cache), 4, index, intermediate_size) == expected


def test_what_is_stored_of_a_weight_only_checkpoint_is_a_padded_plain_one() -> None:
    assert held(PRECISIONS["int8_wo"], 4, 0, 29568) == parsed(PLAIN)


def test_fp8_without_a_quantised_kv_cache_has_no_scale_for_it() -> None:
    kv_scale = f"{LAYER}attention.kv_cache_scaling_factor"
    expected = {name: spec for name, spec in parsed(FP8_KV_FP8).items() if name != kv_scale}
    assert held(decoder_precision("fp8", kv_cache="model"), 4, 0, 29696) == expected


def test_any_precision_may_have_a_quantised_kv_cache() -> None:
    for name in PRECISIONS:
        for kv_cache in ("fp8", "int8"):
            shapes = held(decoder_precision(name, kv_cache=kv_cache), 4, 3, 29568)
            assert shapes[f"{LAYER}attention.kv_cache_scaling_factor"] == ((1,), "F32")


def test_fp16_differs_from_bf16_by_the_dtype_alone() -> None:
    expected = {name: (shape, "F16") for name, (shape, _) in held(PRECISIONS["bf16"], 4, 0, 29568).items()}
    assert held(PRECISIONS["fp16"], 4, 0, 29568) == expected


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize(("tp", "qkv_rows"), [(1, 10240), (2, 5120), (4, 2560), (8, 1280)])
def test_shapes_of_the_unpadded_72b_follow_tp_in_every_precision(name: str, tp: int, qkv_rows: int) -> None:
    precision = PRECISIONS[name]
    shapes = held(precision, tp, tp - 1, 29568)
    padded = {"int8_wo": (4, 8), "int4_wo": (4, 8), "int4_awq": (2, 4, 8)}
    wide = (29696 if tp in padded.get(name, ()) else 29568) // tp
    half = 2 if name == "int4_awq" else 1
    word = {"fp16": "F16", "fp8": "F8_E4M3", "int8_sq": "I8", "int4_awq": "I8"}.get(name, "BF16")
    assert shapes[f"{LAYER}attention.qkv.weight"] == ((qkv_rows // half, 8192), word)
    assert shapes[f"{LAYER}attention.dense.weight"] == ((8192 // half, 8192 // tp), word)
    for part in ("fc", "gate"):
        assert shapes[f"{LAYER}mlp.{part}.weight"] == ((wide // half, 8192), word)
    assert shapes[f"{LAYER}mlp.proj.weight"] == ((8192 // half, wide), word)
    if name == "int8_sq":
        assert shapes[f"{LAYER}attention.qkv.weights_scaling_factor"] == ((qkv_rows,), "F32")
        assert shapes[f"{LAYER}mlp.proj.weights_scaling_factor"] == ((8192,), "F32")
        assert shapes[f"{LAYER}mlp.proj.prequant_scaling_factor"] == ((wide,), "BF16")
    if name == "int4_awq":
        assert shapes[f"{LAYER}mlp.fc.weights_scaling_factor"] == ((wide, 64), "BF16")
        assert shapes[f"{LAYER}mlp.proj.weights_scaling_factor"] == ((8192, wide // 128), "BF16")
        assert shapes[f"{LAYER}attention.dense.prequant_scaling_factor"] == ((8192 // tp,), "BF16")


def test_half_the_group_size_gives_twice_the_scales() -> None:
    shapes = held(decoder_precision("int4_awq", group_size=64), 2, 0, 29568)
    assert shapes[f"{LAYER}mlp.proj.weight"] == ((4096, 14784), "I8")
    assert shapes[f"{LAYER}mlp.proj.weights_scaling_factor"] == ((8192, 231), "BF16")
