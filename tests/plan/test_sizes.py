"""Bytes of weights, caches and tables are those of the files and of the layout."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.decoder.convert import converted_bytes
from nvlm_trt.decoder.precision import PRECISIONS, decoder_precision
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.synthetic import tiny_spec
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.plan.sizes import (
    decoder_activation_bytes,
    kv_bytes_per_token,
    rank_weights,
    vision_activation_bytes,
    vision_engine_bytes,
)
from nvlm_trt.vision.builder import ALIGNMENT
from nvlm_trt.vision.dtypes import BF16, FP32, DType
from nvlm_trt.vision.graph import build_vision_graph

RELEASE = planned_shapes(None).config
SPLITS = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 3)]
WEIGHT_ONLY = ("int8_wo", "int4_wo")


def all_ranks(config: NvlmConfig, tp: int, pp: int, name: str) -> int:
    ranks = [Rank(tp, pp, index) for index in range(tp * pp)]
    return sum(rank_weights(config.decoder, rank, PRECISIONS[name]).total for rank in ranks)


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name not in WEIGHT_ONLY])
@pytest.mark.parametrize(("tp", "pp"), SPLITS)
def test_weights_on_the_gpus_are_those_of_the_rank_files(name: str, tp: int, pp: int) -> None:
    assert all_ranks(RELEASE, tp, pp, name) == converted_bytes(RELEASE, tp, pp, precision=PRECISIONS[name])


@pytest.mark.parametrize(("name", "bits"), [("int8_wo", 8), ("int4_wo", 4)])
@pytest.mark.parametrize(("tp", "width"), [(2, 29_568), (4, 29_696)])
def test_weight_only_kinds_are_codes_and_a_scale_an_output_on_the_gpu(
    name: str, bits: int, tp: int, width: int
) -> None:
    """Shapes of one rank after TensorRT-LLM's load-time quantisation, the MLP padded at tp 4."""
    shapes = [(10_240 // tp, 8192), (8192, 8192 // tp), *[(width // tp, 8192)] * 2, (8192, width // tp)]
    layer = sum(rows * columns * bits // 8 + 2 * rows for rows, columns in shapes)
    weights = rank_weights(RELEASE.decoder, Rank(tp, 1, 0), PRECISIONS[name])
    assert weights.linear == 80 * layer
    assert weights.head == 152_064 // tp * 8192 * 2
    assert weights.embedding == 152_064 * 8192 * 2
    assert weights.other == 2 * (80 * (2 * 8192 + 10_240 // tp) + 8192)


@settings(max_examples=40)
@given(
    tp=st.sampled_from([1, 2, 4]),
    heads=st.sampled_from([4, 8, 16]),
    layers=st.integers(1, 5),
    wide=st.integers(1, 6),
    cache=st.sampled_from(["auto", "fp8"]),
)
def test_fp8_is_never_larger_than_bf16(tp: int, heads: int, layers: int, wide: int, cache: str) -> None:
    spec = tiny_spec(
        hidden_size=32 * heads, intermediate_size=64 * wide, decoder_layers=layers, heads=heads, kv_heads=4
    )
    decoder, rank = spec.config.decoder, Rank(tp, 1, tp - 1)
    bf16 = PRECISIONS["bf16"]
    fp8 = decoder_precision("fp8", kv_cache=cache)
    assert rank_weights(decoder, rank, fp8).total < rank_weights(decoder, rank, bf16).total
    assert kv_bytes_per_token(decoder, rank, fp8) * 2 == kv_bytes_per_token(decoder, rank, bf16)


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_the_vision_engine_is_as_large_as_the_exported_weights(precision: DType) -> None:
    """Of the file, gaps that align tensors come on top."""
    graph = build_vision_graph(RELEASE, dummy_heads=7, precision=precision, output=BF16)
    gaps = graph.data_bytes - vision_engine_bytes(RELEASE, precision.name)
    assert 0 <= gaps < ALIGNMENT * len(graph.weights)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_quantised_vision_engine_is_about_half_as_large(precision: str) -> None:
    ratio = vision_engine_bytes(RELEASE, precision) / vision_engine_bytes(RELEASE, "bf16")
    assert 0.5 < ratio < 0.51


@pytest.mark.parametrize(
    ("tp", "pp", "kilobytes"), [(1, 1, 327_680), (4, 1, 81_920), (8, 1, 40_960), (16, 1, 40_960), (2, 4, 40_960)]
)
def test_a_kv_head_is_repeated_where_there_are_more_ranks_than_heads(tp: int, pp: int, kilobytes: int) -> None:
    assert kv_bytes_per_token(RELEASE.decoder, Rank(tp, pp, 0), PRECISIONS["bf16"]) == kilobytes


def test_activations_of_the_decoder_by_hand() -> None:
    """8,192 tokens at tp 4: residual and normed input, three MLP vectors of 7,392; logits of 64 requests."""
    bf16, decoder = PRECISIONS["bf16"], RELEASE.decoder
    expected = 8192 * 2 * (2 * 8192 + 3 * 7392) + 64 * 152_064 * 4
    assert decoder_activation_bytes(decoder, Rank(4, 1, 0), bf16, 8192, 64) == expected
    first_stage = decoder_activation_bytes(decoder, Rank(4, 2, 0), bf16, 8192, 64)
    assert first_stage == expected - 64 * 152_064 * 4


def test_activations_of_the_vision_engine_by_hand() -> None:
    """7 tiles: residual, normed input and two vectors of 12,800 for 1,025 tokens, or the projector's for 256."""
    block, projector = 1025 * (2 * 3200 + 2 * 12_800), 256 * (12_800 + 2 * 29_568 + 8192)
    assert vision_activation_bytes(RELEASE, "bf16", 7) == 7 * 2 * max(block, projector)
