"""Choices are judged alike; what is named as a remedy was judged and does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from nvlm_trt.decoder.precision import PRECISIONS
from nvlm_trt.decoder.trtllm_build_command import refusals
from nvlm_trt.plan.choices import PREFERENCE, TENSOR_PARALLEL, cheaper, cheapest, choices, remedies
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.verdict import judge
from nvlm_trt.plan.workload import Workload

Deploy = Callable[..., Deployment]


def picked(plan: Deployment, workload: Workload, **how: object) -> tuple[str, int] | None:
    options = {"gpus": None, "all_precisions": False} | how
    best = cheapest(choices(plan, workload, **options))  # type: ignore[arg-type]
    return best and (best.deployment.recipe.decoder_precision, best.deployment.gpus)


def test_every_precision_has_a_place() -> None:
    assert sorted(PREFERENCE) == sorted(PRECISIONS)


def test_choices_are_the_recipes_precision_at_every_tp(deploy: Deploy, one_image: Workload) -> None:
    verdicts = choices(deploy(tp=4, decoder_precision="fp8"), one_image, gpus=None, all_precisions=False)
    recipes = [verdict.deployment.recipe for verdict in verdicts]
    assert [(each.decoder_precision, each.tp) for each in recipes] == [("fp8", tp) for tp in TENSOR_PARALLEL]


@pytest.mark.parametrize(("own", "count"), [("bf16", 6), ("fp16", 7)])
def test_all_precisions_leave_fp16_out_unless_it_is_asked_for(
    own: str, count: int, deploy: Deploy, one_image: Workload
) -> None:
    verdicts = choices(deploy(decoder_precision=own), one_image, gpus=None, all_precisions=True)
    assert len(verdicts) == count * len(TENSOR_PARALLEL)


def test_the_cheapest_has_the_fewest_gpus(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=8, decoder_precision="bf16", max_batch_size=64, max_input_len=16_384)
    busy = dataclasses.replace(one_image, concurrency=60)
    assert picked(plan, one_image) == ("bf16", 4)
    assert picked(plan, busy) == ("bf16", 8)
    assert picked(plan.changed(decoder_precision="fp8"), busy) == ("fp8", 4)
    assert picked(plan, dataclasses.replace(one_image, ttft_limit_ms=60.0)) == ("bf16", 8)
    assert picked(plan, dataclasses.replace(one_image, ttft_limit_ms=1.0)) is None
    assert picked(plan, busy, gpus=4) is None


def test_of_equally_many_gpus_the_precision_that_loses_least_is_taken(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy("h200-sxm", tp=2, decoder_precision="int4_wo")
    assert picked(plan, one_image, all_precisions=True) == ("fp8", 1)


def test_fewer_gpus_may_do_after_one_smaller_limit(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=4, decoder_precision="fp8", max_batch_size=64, max_input_len=16_384)
    busy = dataclasses.replace(one_image, output_tokens=200, concurrency=50)
    verdicts = choices(plan, busy, gpus=None, all_precisions=False)
    best = cheapest(verdicts)
    found = cheaper(verdicts, best, None)
    assert best is not None
    assert found is not None
    assert (best.deployment.gpus, found[0].deployment.gpus, found[0].ok) == (4, 2, False)
    assert found[1].startswith("max_images 2:")
    assert judge(found[0].deployment.changed(max_images=2), busy).ok
    assert cheaper(verdicts, found[0], None) is None


def test_no_limit_makes_up_for_weights_that_do_not_fit(deploy: Deploy, one_image: Workload) -> None:
    verdicts = choices(deploy("l40s", decoder_precision="bf16"), one_image, gpus=4, all_precisions=False)
    assert cheapest(verdicts) is None
    assert cheaper(verdicts, None, 4) is None


def test_what_fits_needs_no_remedy(deploy: Deploy, one_image: Workload) -> None:
    assert remedies(judge(deploy(tp=4, decoder_precision="fp8"), one_image), None) == ()


def test_remedies_of_too_little_memory(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=2, decoder_precision="bf16", max_batch_size=8)
    named = remedies(judge(plan, one_image), None)
    assert named[:2] == ("tp 4: 4 GPUs", "decoder_precision fp8")
    assert named[-1].startswith("another GPU model: b200, h200-sxm")
    assert not any(words.startswith("max_batch_size") for words in named)


def test_buffers_are_made_smaller_no_further_than_needed(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy("l40s", tp=4, decoder_precision="fp8", max_batch_size=96, max_input_len=16_384)
    named = " | ".join(remedies(judge(plan, one_image), None))
    assert "max_batch_size 24: a smaller buffer" in named
    assert judge(plan.changed(max_batch_size=24), one_image).fits
    assert not judge(plan.changed(max_batch_size=48), one_image).fits
    assert "max_images 1:" in named


def test_a_smaller_share_for_the_cache_is_the_remedy_of_prompt_tables_without_room(
    deploy: Deploy, one_image: Workload
) -> None:
    engine = {"kv_cache_fraction": 0.91}
    fields = {"max_batch_size": 64, "max_images": 2, "max_input_len": 16_384, "decoder_engine": engine}
    plan = deploy(tp=4, decoder_precision="fp8", **fields)
    named = remedies(judge(plan, dataclasses.replace(one_image, images=2, concurrency=64)), None)
    assert "decoder_engine.kv_cache_fraction 0.85: room for prompt tables" in named
    full = remedies(judge(plan.changed(tp=2), one_image), None)
    assert not any("kv_cache_fraction" in words for words in full)


def test_a_smaller_cache_entry_is_a_remedy(deploy: Deploy, one_image: Workload) -> None:
    engine = {"kv_cache_fraction": 0.8}
    plan = deploy(tp=4, decoder_precision="bf16", max_batch_size=64, max_input_len=16_384, decoder_engine=engine)
    verdict = judge(plan, dataclasses.replace(one_image, concurrency=60))
    assert verdict.misses == ("the KV cache holds 55 requests, not 60",)
    unpaged = "with kv_cache_reuse and chunked_context false"
    assert f"decoder_engine.kv_cache_precision fp8 {unpaged}" in remedies(verdict, None)
    older = judge(dataclasses.replace(plan, gpu=deploy("a100-80g-sxm").gpu), verdict.workload)
    assert f"decoder_engine.kv_cache_precision int8 {unpaged}" in remedies(older, None)


@pytest.mark.parametrize(
    ("precision", "cache"), [("bf16", "fp8"), ("bf16", "int8"), ("int8_sq", "fp8"), ("fp8", "int8")]
)
def test_a_smaller_cache_that_the_build_refuses_is_refused_here_and_told_what_would_do(
    precision: str, cache: str, deploy: Deploy, one_image: Workload
) -> None:
    engine = {"kv_cache_precision": cache}
    plan = deploy(tp=8, decoder_precision=precision, decoder_engine=engine)
    verdict = judge(plan, one_image)
    reasons = refusals(plan.recipe, plan.config.decoder, plan.precision)
    assert verdict.blockers == tuple(reasons)
    assert len(reasons) == 1
    named = remedies(verdict, None)
    assert "decoder_engine.kv_cache_precision auto" in named
    assert f"decoder_engine.kv_cache_precision {cache} with kv_cache_reuse and chunked_context false" in named
    unpaged = engine | {"kv_cache_reuse": False, "chunked_context": False}
    assert judge(deploy(tp=8, decoder_precision=precision, decoder_engine=unpaged), one_image).ok


def test_only_what_is_on_has_to_be_turned_off(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=8, decoder_engine={"kv_cache_precision": "fp8", "kv_cache_reuse": False})
    named = remedies(judge(plan, one_image), None)
    assert "decoder_engine.kv_cache_precision fp8 with chunked_context false" in named
    engine = {"kv_cache_reuse": False, "chunked_context": False, "kv_cache_fraction": 0.8}
    unpaged = deploy(tp=4, max_batch_size=64, max_input_len=16_384, decoder_engine=engine)
    short = judge(unpaged, dataclasses.replace(one_image, concurrency=60))
    assert "decoder_engine.kv_cache_precision fp8" in remedies(short, None)


def test_no_remedy_names_chunks_that_the_build_would_refuse(deploy: Deploy, one_image: Workload) -> None:
    """Without chunks a step has to hold the longest prompt, so fewer tokens of a step are no remedy."""
    chunked = deploy("l40s", tp=4, decoder_precision="fp8", max_batch_size=42, max_input_len=16_384)
    plan = chunked.changed(decoder_engine=chunked.recipe.decoder_engine.model_copy(update={"chunked_context": False}))
    assert any("max_num_tokens" in words for words in remedies(judge(chunked, one_image), None))
    assert not any("max_num_tokens" in words for words in remedies(judge(plan, one_image), None))


def test_another_precision_is_the_remedy_of_a_refusal(deploy: Deploy, one_image: Workload) -> None:
    on_ampere = judge(deploy("a100-80g-sxm", tp=4, decoder_precision="fp8"), one_image)
    assert "decoder_precision bf16" in remedies(on_ampere, None)
    on_blackwell = judge(deploy("b200", tp=1, decoder_precision="int8_wo", max_batch_size=64), one_image)
    assert "decoder_precision fp8" in remedies(on_blackwell, None)
    seeing = judge(deploy("a100-80g-sxm", tp=4, vision_precision="fp8"), one_image)
    assert "vision_precision bf16" in remedies(seeing, None)


def test_a_larger_batch_and_more_ranks_are_remedies_of_falling_short(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=4, decoder_precision="fp8")
    assert "max_batch_size 9" in remedies(judge(plan, dataclasses.replace(one_image, concurrency=9)), None)
    slow = judge(plan, dataclasses.replace(one_image, ttft_limit_ms=40.0))
    assert remedies(slow, None)[0] == "tp 8: 8 GPUs"
    assert not any("max_batch_size" in words for words in remedies(slow, None))


def test_fewer_ranks_are_the_remedy_of_too_few_gpus(deploy: Deploy, one_image: Workload) -> None:
    verdict = judge(deploy("h200-sxm", tp=8, decoder_precision="fp8"), one_image, 2)
    assert "tp 2" in remedies(verdict, 2)
    assert not any(words.startswith("tp 4") for words in remedies(verdict, 2))
