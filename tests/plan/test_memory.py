"""Memory is counted GPU by GPU, and the fullest one decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.plan.deployment import Assumptions, Deployment
from nvlm_trt.plan.memory import gpu_memory, kv_tokens, requests_that_fit

Deploy = Callable[..., Deployment]
PRECISIONS = ("bf16", "fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq")


def test_everything_on_a_gpu_is_counted(deploy: Deploy) -> None:
    plan = deploy(tp=4, decoder_precision="fp8", max_batch_size=64, max_input_len=16384, max_output_len=2048)
    first = gpu_memory(plan)[0]
    assert first.usable == 72_000_000_000
    assert first.prompt_table == 64 * 4 * 7 * 256 * 8192 * 2
    assert first.loaded == 3_500_000_000 + first.decoder + first.vision + first.prompt_table + first.activations
    assert first.left == first.usable - first.loaded
    assert first.kv_tokens == first.left // 40_960


def test_only_gpus_with_a_vision_engine_hold_one(deploy: Deploy) -> None:
    memories = gpu_memory(deploy(tp=4, vision_engine={"gpus": 1}))
    assert [memory.vision > 0 for memory in memories] == [True, False, False, False]
    assert memories[0].activations > memories[1].activations
    assert kv_tokens(memories, 1) == memories[0].kv_tokens < memories[1].kv_tokens


def test_pipeline_stages_hold_different_parts(deploy: Deploy) -> None:
    first, last = gpu_memory(deploy(tp=1, pp=2))
    assert first.decoder == last.decoder - 8192 * 2  # embedding and lm_head are as large; the final norm is last
    assert first.kv_per_token == last.kv_per_token == 163_840


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 3)])
def test_every_rank_has_a_buffer_of_prompt_tables_for_each_batch_in_the_pipeline(
    tp: int, pp: int, deploy: Deploy
) -> None:
    plan = deploy(tp=tp, pp=pp, max_batch_size=16, max_images=2)
    one = 16 * 2 * 7 * 256 * 8192 * 2
    assert [memory.prompt_table for memory in gpu_memory(plan)] == [pp * one] * (tp * pp)


def test_the_first_node_of_several_holds_the_last_stage_beside_the_vision_engine(deploy: Deploy) -> None:
    """The embedding is whole on each rank of the first stage, lm_head is split over those of the last."""
    memories = gpu_memory(deploy(tp=8, pp=2))
    embedding = 152_064 * 8192 * 2
    assert memories[8].decoder - memories[0].decoder == embedding - embedding // 8 - 8192 * 2
    assert [memory.vision > 0 for memory in (memories[0], memories[8])] == [True, False]


def test_both_assumptions_can_be_changed(deploy: Deploy) -> None:
    generous = gpu_memory(deploy(assumptions=Assumptions(1.0, 0)))[0]
    assert (generous.usable, generous.reserve) == (80_000_000_000, 0)


def test_the_runtimes_own_fraction_is_a_limit_too(deploy: Deploy) -> None:
    half = gpu_memory(deploy(tp=4, decoder_engine={"kv_cache_fraction": 0.25}))[0]
    assert half.left == int(0.25 * (half.memory - half.loaded)) < half.usable - half.loaded


def test_the_rest_of_what_is_free_is_for_what_comes_while_serving(deploy: Deploy) -> None:
    memory = gpu_memory(deploy(tp=4, decoder_engine={"kv_cache_fraction": 0.75}))[0]
    assert memory.spare == (memory.memory - memory.loaded) // 4
    assert gpu_memory(deploy(tp=1))[0].spare == 0


def test_what_does_not_fit_leaves_no_tokens(deploy: Deploy) -> None:
    memory = gpu_memory(deploy(tp=1))[0]
    assert memory.left < 0
    assert memory.kv_tokens == 0


def test_the_cache_is_dealt_out_in_blocks(deploy: Deploy) -> None:
    memory = gpu_memory(deploy(tp=4))[0]
    odd = dataclasses.replace(memory, usable=memory.loaded + 1000 * memory.kv_per_token)
    assert (odd.kv_tokens, kv_tokens([odd, memory], 32)) == (1000, 992)
    assert requests_that_fit(992, 33, 32) == 15
    assert requests_that_fit(992, 993, 32) == 0


def tokens_of(plan: Deployment) -> int:
    return kv_tokens(gpu_memory(plan), 32)


@pytest.fixture(scope="module", params=["h100-sxm", "h200-sxm"])
def base(request: pytest.FixtureRequest, deploy: Deploy) -> Deployment:
    return deploy(request.param)


@settings(max_examples=25)
@given(
    precision=st.sampled_from(PRECISIONS),
    batch=st.integers(1, 128),
    images=st.integers(1, 8),
    vision=st.sampled_from([None, 1, 2]),
)
def test_more_gpus_never_hold_fewer_tokens(
    precision: str, batch: int, images: int, vision: int | None, base: Deployment
) -> None:
    fields = {"decoder_precision": precision, "max_batch_size": batch, "max_images": images}
    engine = base.recipe.vision_engine.model_copy(update={"gpus": vision})
    held = [tokens_of(base.changed(tp=tp, vision_engine=engine, **fields)) for tp in (1, 2, 4, 8)]
    assert held == sorted(held)
    assert held[-1] > 0


@settings(max_examples=25)
@given(batch=st.integers(1, 255), tokens=st.integers(1024, 16384))
def test_larger_buffers_never_leave_more_tokens(batch: int, tokens: int, base: Deployment) -> None:
    def held(batch: int, tokens: int) -> int:
        engine = base.recipe.decoder_engine.model_copy(update={"max_num_tokens": tokens})
        return tokens_of(base.changed(tp=4, max_batch_size=batch, decoder_engine=engine))

    assert held(batch + 1, tokens) <= held(batch, tokens)
    assert held(batch, tokens + 1024) <= held(batch, tokens)


def test_equal_ranks_have_equal_memory(deploy: Deploy) -> None:
    assert len(set(gpu_memory(deploy(tp=8)))) == 1
