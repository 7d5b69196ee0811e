"""Operations and bytes, counted by hand for small shapes."""

from __future__ import annotations

import dataclasses

import pytest

from nvlm_trt.bench.work import engine_work, reference_work
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.model.synthetic import like_72b, tiny_spec
from nvlm_trt.plan.sizes import kv_bytes_per_token, rank_weights
from nvlm_trt.recipe import BuildRecipe, DecoderPrecision

SPEC = tiny_spec(hidden_size=64, intermediate_size=96, decoder_layers=2, heads=4, kv_heads=2, vocab_size=4096)
LAYER = 64 * (2 * 64 + 2 * 32) + 3 * 64 * 96
ELEMENTS = 2 * LAYER + 4096 * 64
KV_ELEMENTS = 2 * 2 * 2 * 16


@pytest.mark.parametrize(
    ("precision", "item", "kept", "arithmetic"),
    [("fp32", 4, 4, "fp32"), ("bf16", 2, 2, "bf16"), ("int8_wo", 1, 4, "fp32")],
)
def test_bytes_of_a_cpu_engine(precision: DecoderPrecision, item: int, kept: int, arithmetic: str) -> None:
    recipe = BuildRecipe(name="a", target="cpu", vision_precision="bf16", decoder_precision=precision)
    work = engine_work(SPEC.config, recipe)
    assert work.step_bytes == ELEMENTS * item
    assert work.token_bytes == KV_ELEMENTS * kept
    assert work.decode_bytes(10) == ELEMENTS * item + 10 * KV_ELEMENTS * kept
    assert (work.vision_arithmetic, work.decoder_arithmetic) == ("bf16", arithmetic)


def test_the_reference_is_of_one_dtype_throughout() -> None:
    work = reference_work(SPEC.config, "bf16")
    assert (work.step_bytes, work.token_bytes) == (ELEMENTS * 2, KV_ELEMENTS * 2)
    assert (work.vision_arithmetic, work.decoder_arithmetic) == ("bf16", "bf16")


def test_layers_that_are_not_quantised_are_read_as_they_are_kept() -> None:
    recipe = BuildRecipe(name="a", target="cpu", decoder_precision="int8_wo", exclude_layers=frozenset({1}))
    assert engine_work(SPEC.config, recipe).step_bytes == ELEMENTS + LAYER


def test_a_gpu_reads_its_own_rank_of_every_stage() -> None:
    config = like_72b(4).config
    recipe = BuildRecipe(name="a", target="gpu", tp=4, pp=2, decoder_precision="fp8")
    work = engine_work(config, recipe)
    precision = decoder_precision("fp8")
    ranks = (Rank(4, 2, 0), Rank(4, 2, 4))
    assert work.step_bytes == sum(rank_weights(config.decoder, rank, precision).read_per_step for rank in ranks)
    assert work.token_bytes == sum(kv_bytes_per_token(config.decoder, rank, precision) for rank in ranks)
    assert work.decoder_arithmetic is None  # fp8 has no measured ceiling
    alone = engine_work(config, recipe.model_copy(update={"tp": 1}))
    assert alone.prefill_flops(100) == 4 * work.prefill_flops(100)


def test_a_padded_mlp_is_read_as_it_is_stored() -> None:
    config = like_72b(4).config
    recipe = BuildRecipe(name="a", target="gpu", tp=4, decoder_precision="int8_wo")
    wide = dataclasses.replace(config.decoder, intermediate_size=29_696)
    expected = rank_weights(wide, Rank(4, 1, 0), decoder_precision("int8_wo")).read_per_step
    assert engine_work(config, recipe).step_bytes == expected
