"""What each rank of a TensorRT-LLM checkpoint holds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.decoder.trtllm_layout import (
    Parameter,
    Rank,
    check_parallelism,
    padded_vocab,
    rank_parameters,
    stage_layers,
)
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.synthetic import like_72b

# What the official Qwen2 classes demand of one rank of Qwen2-72B at tp 4, layer 0. The list that this was taken from
# was made with the intermediate size padded to 29696, as quantised precisions need (7424 a rank); plain bfloat16 keeps
# 29568, 7392 a rank.
QWEN2_72B_TP4 = {
    "transformer.vocab_embedding.weight": (152064, 8192),
    "transformer.layers.0.input_layernorm.weight": (8192,),
    "transformer.layers.0.attention.qkv.weight": (2560, 8192),
    "transformer.layers.0.attention.qkv.bias": (2560,),
    "transformer.layers.0.attention.dense.weight": (8192, 2048),
    "transformer.layers.0.mlp.fc.weight": (7392, 8192),
    "transformer.layers.0.mlp.proj.weight": (8192, 7392),
    "transformer.layers.0.mlp.gate.weight": (7392, 8192),
    "transformer.layers.0.post_layernorm.weight": (8192,),
    "transformer.ln_f.weight": (8192,),
    "lm_head.weight": (38016, 8192),
}


def make_config(
    *, heads: int = 8, kv_heads: int = 4, layers: int = 3, vocab: int = 40, wide: int = 48, head_dim: int = 2
) -> DecoderConfig:
    return DecoderConfig(
        hidden_size=heads * head_dim,
        intermediate_size=wide,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=1024,
    )


def qwen2_72b(layers: int = 80) -> DecoderConfig:
    decoder = like_72b(1).config.decoder
    return DecoderConfig(**{name: getattr(decoder, name) for name in decoder.__slots__} | {"num_layers": layers})


def by_name(config: DecoderConfig, tp: int, pp: int, index: int) -> dict[str, Parameter]:
    return {parameter.name: parameter for parameter in rank_parameters(config, Rank(tp, pp, index))}


def sources(parameter: Parameter) -> list[tuple[str | None, int, int]]:
    return [(piece.source, piece.start, piece.stop) for piece in parameter.pieces]


@pytest.mark.parametrize("index", range(4))
def test_qwen2_72b_at_tp4_has_the_official_names_and_shapes(index: int) -> None:
    parameters = by_name(qwen2_72b(layers=1), 4, 1, index)
    assert {name: parameter.shape for name, parameter in parameters.items()} == QWEN2_72B_TP4


def test_qwen2_72b_has_eight_tensors_a_layer_and_three_more() -> None:
    assert len(rank_parameters(qwen2_72b(), Rank(4, 1, 0))) == 80 * 8 + 3


@pytest.mark.parametrize(
    ("tp", "qkv_rows", "dense_columns", "wide", "head_rows"),
    [
        (1, 10240, 8192, 29568, 152064),
        (2, 5120, 4096, 14784, 76032),
        (8, 1280, 1024, 3696, 19008),
        (16, 768, 512, 1848, 9504),
    ],
)
def test_qwen2_72b_shapes_follow_tp(tp: int, qkv_rows: int, dense_columns: int, wide: int, head_rows: int) -> None:
    shapes = {name: each.shape for name, each in by_name(qwen2_72b(1), tp, 1, tp - 1).items()}
    assert shapes["transformer.layers.0.attention.qkv.weight"] == (qkv_rows, 8192)
    assert shapes["transformer.layers.0.attention.qkv.bias"] == (qkv_rows,)
    assert shapes["transformer.layers.0.attention.dense.weight"] == (8192, dense_columns)
    assert shapes["transformer.layers.0.mlp.fc.weight"] == (wide, 8192)
    assert shapes["transformer.layers.0.mlp.proj.weight"] == (8192, wide)
    assert shapes["lm_head.weight"] == (head_rows, 8192)


def test_fc_is_the_activated_branch_and_gate_the_other() -> None:
    parameters = by_name(make_config(), 2, 1, 1)
    layer = "language_model.model.layers.0.mlp."
    assert sources(parameters["transformer.layers.0.mlp.fc.weight"]) == [(f"{layer}gate_proj.weight", 24, 48)]
    assert sources(parameters["transformer.layers.0.mlp.gate.weight"]) == [(f"{layer}up_proj.weight", 24, 48)]


def test_qkv_is_the_ranks_rows_of_q_then_k_then_v() -> None:
    layer = "language_model.model.layers.0.self_attn."
    expected = [(f"{layer}q_proj.weight", 8, 16), (f"{layer}k_proj.weight", 4, 8), (f"{layer}v_proj.weight", 4, 8)]
    assert sources(by_name(make_config(), 2, 1, 1)["transformer.layers.0.attention.qkv.weight"]) == expected


def test_kv_heads_are_repeated_when_there_are_more_ranks() -> None:
    config = make_config(heads=8, kv_heads=2)
    key_rows = [sources(by_name(config, 8, 1, r)["transformer.layers.0.attention.qkv.weight"])[1][1:] for r in range(8)]
    assert key_rows == [(0, 2)] * 4 + [(2, 4)] * 4


def test_lm_head_is_padded_with_zero_rows_and_split() -> None:
    config = make_config(vocab=9)
    head = "language_model.lm_head.weight"
    seen = [sources(by_name(config, 8, 1, index)["lm_head.weight"]) for index in range(8)]
    assert seen[:4] == [[(head, start, start + 2)] for start in (0, 2, 4, 6)]
    assert seen[4] == [(head, 8, 9), (None, 0, 1)]
    assert seen[5:] == [[(None, 0, 2)]] * 3


def test_the_embedding_is_never_padded_or_split() -> None:
    parameters = by_name(make_config(vocab=9), 8, 1, 7)
    assert parameters["transformer.vocab_embedding.weight"].shape == (9, 16)


def test_five_layers_over_two_stages_are_three_and_two_renumbered() -> None:
    config = make_config(layers=5)
    first, last = by_name(config, 2, 2, 1), by_name(config, 2, 2, 2)
    norm = "language_model.model.layers.{}.input_layernorm.weight"
    seen = [
        [sources(each[name])[0][0] for name in each if name.endswith("input_layernorm.weight")]
        for each in (first, last)
    ]
    assert seen == [[norm.format(0), norm.format(1), norm.format(2)], [norm.format(3), norm.format(4)]]
    assert "transformer.layers.1.input_layernorm.weight" in last
    assert "transformer.layers.2.input_layernorm.weight" not in last


def test_embedding_is_on_the_first_stage_norm_and_head_on_the_last() -> None:
    config = make_config(layers=3)
    stages = [by_name(config, 1, 3, stage) for stage in range(3)]
    assert ["transformer.vocab_embedding.weight" in stage for stage in stages] == [True, False, False]
    assert ["transformer.ln_f.weight" in stage for stage in stages] == [False, False, True]
    assert ["lm_head.weight" in stage for stage in stages] == [False, False, True]


def test_tp_ranks_of_a_stage_are_neighbours() -> None:
    assert [(Rank(2, 2, index).stage, Rank(2, 2, index).tp_rank) for index in range(4)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@given(layers=st.integers(1, 100), data=st.data())
def test_stages_are_those_of_tensor_split(layers: int, data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, layers))
    expected = [part.tolist() for part in torch.tensor_split(torch.arange(layers), pp)]
    assert [list(stage_layers(layers, pp, stage)) for stage in range(pp)] == expected


@given(vocab=st.integers(1, 10_000), tp=st.integers(1, 64))
def test_the_padded_vocabulary_is_the_next_multiple(vocab: int, tp: int) -> None:
    padded = padded_vocab(vocab, tp)
    assert padded % tp == 0
    assert 0 <= padded - vocab < tp


def test_shapes_that_do_not_allow_it_are_refused_with_every_reason() -> None:
    config = make_config(heads=8, kv_heads=4, layers=3, wide=50)
    with pytest.raises(RecipeError) as refusal:
        rank_parameters(config, Rank(3, 4, 0))
    text = str(refusal.value)
    assert "8 attention heads are no multiple of tp 3" in text
    assert "neither of 4 kv heads and tp 3 is a multiple of the other" in text
    assert "intermediate size 50 is no multiple of tp 3" in text
    assert "3 layers are fewer than pp 4" in text
    assert "tp one of 1, 2; pp from 1 to 3" in text


@pytest.mark.parametrize(("tp", "pp"), [(0, 1), (1, 0), (-1, 1), (-2, -1)])
def test_less_than_one_rank_is_refused(tp: int, pp: int) -> None:
    with pytest.raises(RecipeError, match="at least 1 is needed"):
        check_parallelism(make_config(), tp, pp)


@st.composite
def split_decoders(draw: st.DrawFn) -> tuple[DecoderConfig, int, int]:
    tp = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    kv_heads = draw(st.sampled_from([count for count in range(1, 13) if count % tp == 0 or tp % count == 0]))
    heads = kv_heads * tp * draw(st.integers(1, 2))
    layers = draw(st.integers(1, 5))
    wide = tp * draw(st.integers(1, 4))
    config = make_config(heads=heads, kv_heads=kv_heads, layers=layers, vocab=draw(st.integers(1, 40)), wide=wide)
    return config, tp, draw(st.integers(1, layers))


@given(split_decoders())
def test_the_ranks_together_hold_every_number_of_the_source(decoder: tuple[DecoderConfig, int, int]) -> None:
    config, tp, pp = decoder
    repeats = max(1, tp // config.num_kv_heads)
    copies: Counter[str] = Counter()
    for index in range(tp * pp):
        for parameter in rank_parameters(config, Rank(tp, pp, index)):
            assert sum(piece.rows for piece in parameter.pieces) == parameter.shape[0]
            width = parameter.shape[1] if len(parameter.shape) > 1 else 1
            for piece in parameter.pieces:
                copies[piece.source or "padding"] += piece.rows * width
    head_rows = config.num_kv_heads * config.head_dim
    assert copies["padding"] == (padded_vocab(config.vocab_size, tp) - config.vocab_size) * config.hidden_size
    assert copies["language_model.lm_head.weight"] == config.vocab_size * config.hidden_size
    assert copies["language_model.model.embed_tokens.weight"] == tp * config.vocab_size * config.hidden_size
    for layer in range(config.num_layers):
        prefix = f"language_model.model.layers.{layer}."
        assert copies[f"{prefix}self_attn.q_proj.weight"] == config.hidden_size**2
        assert copies[f"{prefix}self_attn.k_proj.weight"] == repeats * head_rows * config.hidden_size
        assert copies[f"{prefix}self_attn.v_proj.bias"] == repeats * head_rows
        assert copies[f"{prefix}self_attn.o_proj.weight"] == config.hidden_size**2
        assert copies[f"{prefix}mlp.down_proj.weight"] == config.intermediate_size * config.hidden_size
        assert copies[f"{prefix}input_layernorm.weight"] == tp * config.hidden_size
