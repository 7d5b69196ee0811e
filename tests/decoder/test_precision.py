"""The precisions of a decoder: what config.json says of them, what they pad, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from nvlm_trt.decoder.precision import PRECISIONS, decoder_precision
from nvlm_trt.decoder.trtllm_layout import Rank, check_parallelism, rank_parameters
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.synthetic import like_72b
from nvlm_trt.recipe import DecoderEngineFields, DecoderPrecision


def qwen2_72b() -> DecoderConfig:
    return replace(like_72b(1).config.decoder, num_layers=80)


def test_every_decoder_precision_of_a_gpu_recipe_is_there() -> None:
    assert set(PRECISIONS) == set(get_args(DecoderPrecision)) - {"fp32", "int8"}


@pytest.mark.parametrize(
    ("name", "dtype", "algo", "kv_cache", "calibrated"),
    [
        ("bf16", "bfloat16", None, None, False),
        ("fp16", "float16", None, None, False),
        ("fp8", "bfloat16", "FP8", "FP8", True),
        ("int8_sq", "bfloat16", "W8A8_SQ_PER_CHANNEL", None, True),
        ("int8_wo", "bfloat16", "W8A16", None, False),
        ("int4_wo", "bfloat16", "W4A16", None, False),
        ("int4_awq", "bfloat16", "W4A16_AWQ", None, True),
    ],
)
def test_each_precision_is_an_algorithm_of_tensorrt_llm(
    name: str, dtype: str, algo: str | None, kv_cache: str | None, calibrated: bool
) -> None:
    precision = decoder_precision(name)
    assert precision == PRECISIONS[name]
    assert precision.dtype.name == dtype
    assert (precision.quantization.quant_algo, precision.quantization.kv_cache_quant_algo) == (algo, kv_cache)
    assert precision.needs_calibration == calibrated


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize(("kv_cache", "algo"), [("model", None), ("fp8", "FP8"), ("int8", "INT8")])
def test_the_kv_cache_may_be_chosen_and_a_quantised_one_needs_calibration(
    name: str, kv_cache: str, algo: str | None
) -> None:
    precision = decoder_precision(name, kv_cache=kv_cache)
    assert precision.quantization.kv_cache_quant_algo == algo
    assert precision.quantization.quant_algo == PRECISIONS[name].quantization.quant_algo
    assert precision.needs_calibration == (algo is not None or name in ("fp8", "int8_sq", "int4_awq"))


def test_whatever_a_recipe_can_say_of_the_kv_cache_and_groups_is_known() -> None:
    fields = DecoderEngineFields.model_fields
    for kv_cache in get_args(fields["kv_cache_precision"].annotation):
        for group_size in get_args(fields["awq_group_size"].annotation):
            precision = decoder_precision("int4_awq", kv_cache=kv_cache, group_size=group_size)
            assert precision.quantization.group_size == group_size
            assert decoder_precision("fp8", group_size=group_size).quantization.group_size is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"name": "fp32"}, "no such decoder precision; seen: fp32; expected: bf16 | fp16 | fp8"),
        ({"name": "fp8", "kv_cache": "fp4"}, "no such KV cache; seen: fp4; expected: auto | model | fp8 | int8"),
        ({"name": "int4_awq", "group_size": 32}, "no such group size; seen: 32; expected: 64 | 128"),
    ],
)
def test_an_unknown_wish_is_refused_with_the_known_ones(asked: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        decoder_precision(**asked)  # type: ignore[arg-type]
    assert says in str(refusal.value)


def test_the_quantization_object_holds_only_what_the_algorithm_needs() -> None:
    nothing = {"quant_algo": None, "kv_cache_quant_algo": None}
    assert PRECISIONS["bf16"].quantization.to_dict() == nothing
    assert PRECISIONS["fp8"].quantization.to_dict() == {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    for name, algo in (("int8_sq", "W8A8_SQ_PER_CHANNEL"), ("int8_wo", "W8A16"), ("int4_wo", "W4A16")):
        assert PRECISIONS[name].quantization.to_dict() == nothing | {"quant_algo": algo}
    assert decoder_precision("int4_awq", group_size=64).quantization.to_dict() == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": True,
    }


@pytest.mark.parametrize(
    ("name", "group_size", "padded_at"),
    [
        ("bf16", 128, ()),
        ("fp16", 128, ()),
        ("fp8", 128, ()),
        ("int8_sq", 128, ()),
        ("int8_wo", 128, (4, 8)),
        ("int4_wo", 128, (4, 8)),
        ("int4_awq", 128, (2, 4, 8)),
        ("int4_awq", 64, (4, 8)),
    ],
)
def test_the_72b_is_padded_to_29696_only_where_kernels_need_it(
    name: str, group_size: int, padded_at: tuple[int, ...]
) -> None:
    precision = decoder_precision(name, group_size=group_size)
    for tp in (1, 2, 4, 8):
        assert precision.padded_intermediate(29568, tp) == (29696 if tp in padded_at else 29568)
        assert precision.padded_intermediate(29696, tp) == 29696


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_takes_the_72b_at_tp_1_2_4_8(name: str) -> None:
    for tp in (1, 2, 4, 8):
        check_parallelism(qwen2_72b(), tp, 1, PRECISIONS[name])


def make_decoder(**changes: int) -> DecoderConfig:
    decoder = DecoderConfig(
        hidden_size=512,
        intermediate_size=1088,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        vocab_size=101,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=1024,
    )
    return replace(decoder, **changes)


def refusal(decoder: DecoderConfig, tp: int, name: str, group_size: int = 128) -> str:
    with pytest.raises(RecipeError) as refused:
        rank_parameters(decoder, Rank(tp, 1, 0), decoder_precision(name, group_size=group_size))
    return str(refused.value)


def test_widths_that_padding_cannot_mend_are_refused_with_every_reason() -> None:
    text = refusal(make_decoder(hidden_size=480), 4, "int8_wo")
    assert "cannot be split over tp 4 x pp 1 in W8A16" in text
    assert "hidden size 480 is no multiple of 64 x tp 4" in text
    assert "240 rows of q, k and v on a rank are no multiple of 64" in text
    assert "120 columns of attention.dense on a rank are no multiple of 64" in text
    assert "no tp allows this one" in text
    assert "intermediate" not in text, "the MLP is padded"


def test_reasons_of_heads_and_of_kernels_stand_side_by_side() -> None:
    text = refusal(make_decoder(hidden_size=576, num_heads=9, num_kv_heads=3), 2, "int4_wo")
    assert "9 attention heads are no multiple of tp 2" in text
    assert "neither of 3 kv heads and tp 2 is a multiple of the other" in text
    assert "hidden size 576 is no multiple of 64 x tp 2" in text
    assert "tp one of 1, 3, 9; pp from 1 to 2" in text


def test_awq_groups_of_64_go_where_groups_of_128_do_not() -> None:
    decoder = make_decoder()
    text = refusal(decoder, 8, "int4_awq")
    assert "hidden size 512 is no multiple of 128 x tp 8" in text
    assert "192 rows of q, k and v on a rank are no multiple of 128" in text
    assert "64 columns of attention.dense on a rank are no multiple of 128" in text
    assert "tp one of 1, 2, 4;" in text
    check_parallelism(decoder, 8, 1, decoder_precision("int4_awq", group_size=64))


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8", "int8_sq"])
def test_other_precisions_take_any_width_that_tp_divides(name: str) -> None:
    decoder = make_decoder(hidden_size=480, intermediate_size=1090)
    check_parallelism(decoder, 2, 1, PRECISIONS[name])
    assert "intermediate size 1090 is no multiple of tp 4" in refusal(decoder, 4, name)


def test_a_width_that_tp_does_not_divide_is_mended_by_padding_too() -> None:
    shapes = {
        each.name: each.shape
        for each in rank_parameters(make_decoder(intermediate_size=1090), Rank(4, 1, 3), PRECISIONS["int8_wo"])
    }
    assert shapes["transformer.layers.0.mlp.fc.weight"] == (320, 512)
