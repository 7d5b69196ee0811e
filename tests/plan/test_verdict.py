"""A verdict gives every reason, with the value met and the value allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.datasheets.datasheet import load_gpu
from nvlm_trt.plan.deployment import Assumptions, Deployment
from nvlm_trt.plan.verdict import judge
from nvlm_trt.plan.workload import Workload
from nvlm_trt.recipe import parse_recipe

Deploy = Callable[..., Deployment]


def test_what_fits_has_figures_and_no_reasons(deploy: Deploy, one_image: Workload) -> None:
    verdict = judge(deploy(tp=4, decoder_precision="fp8"), one_image)
    assert verdict.fits
    assert verdict.ok
    assert verdict.speed is not None
    assert verdict.capacity is not None
    assert verdict.capacity.requests == verdict.capacity.kv_tokens // 32 // 60


def test_too_little_memory_is_told_in_bytes(deploy: Deploy, one_image: Workload) -> None:
    verdict = judge(deploy(tp=2, decoder_precision="bf16"), one_image)
    (reason,) = verdict.blockers
    assert reason.startswith("GPU 0 lacks ")
    assert "72.0 GB may be used" in reason
    assert verdict.speed is None


def test_a_cache_too_small_for_one_request_does_not_fit(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy("h200-sxm", decoder_precision="fp8", max_output_len=20_000)
    assert judge(plan, one_image).fits
    long = dataclasses.replace(one_image, output_tokens=10_000_000)
    assert any("the KV cache holds" in reason and "10,001,850" in reason for reason in judge(plan, long).blockers)


def test_a_gpu_that_lacks_the_type_runs_nothing(deploy: Deploy, one_image: Workload) -> None:
    verdict = judge(deploy("a100-80g-sxm", tp=4, decoder_precision="fp8"), one_image)
    assert not verdict.fits
    assert "has no fp8" in verdict.blockers[0]
    assert verdict.capacity is not None
    assert verdict.speed is None


def test_too_few_gpus(deploy: Deploy, one_image: Workload) -> None:
    plan = deploy(tp=4, decoder_precision="fp8")
    assert judge(plan, one_image, 2).blockers == ("tp 4 x pp 1 needs 4 GPUs, there are 2",)
    assert judge(plan, one_image, 8).ok


def test_shapes_that_cannot_be_split(tiny_checkpoint: Path, one_image: Workload) -> None:
    recipe = parse_recipe({"name": "r", "target": "gpu", "tp": 16}, "r")
    verdict = judge(Deployment.of(recipe, tiny_checkpoint, load_gpu("l40s"), Assumptions()), one_image)
    assert "cannot be split over tp 16" in verdict.blockers[0]
    assert verdict.capacity is verdict.speed is None


@pytest.mark.parametrize(
    ("fields", "workload", "reason"),
    [
        ({"max_images": 1}, {"images": 2}, "2 images, max_images is 1"),
        ({}, {"tiles": 13}, "13 tiles an image, max_tiles with its thumbnail is 7"),
        ({"max_input_len": 1024}, {}, "1,850 tokens in the prompt, max_input_len is 1,024"),
        ({"max_output_len": 32}, {}, "50 tokens in the answer, max_output_len is 32"),
        ({"max_input_len": 32_768}, {"text_tokens": 30_950}, "32,792 tokens in all, max_seq_len is 32,768"),
        ({}, {"concurrency": 9}, "9 requests at a time, max_batch_size is 8"),
        ({}, {"ttft_limit_ms": 50.0}, "time to first token is 92 ms at best, 50 ms are asked for"),
    ],
)
def test_what_falls_short_is_told(
    fields: dict[str, object], workload: dict[str, object], reason: str, deploy: Deploy, one_image: Workload
) -> None:
    verdict = judge(deploy(tp=4, **fields), dataclasses.replace(one_image, **workload))  # type: ignore[arg-type]
    assert verdict.fits
    assert not verdict.ok
    assert reason in verdict.misses


def test_prompt_tables_have_to_fit_beside_the_cache(deploy: Deploy, one_image: Workload) -> None:
    """Each request's own lies on every GPU while the request is under way, in what the cache's fraction leaves."""
    engine = {"kv_cache_fraction": 0.902}
    fields = {"max_batch_size": 64, "max_images": 2, "max_input_len": 16_384, "decoder_engine": engine}
    plan = deploy(tp=4, decoder_precision="fp8", **fields)
    busy = dataclasses.replace(one_image, images=2, concurrency=64)
    verdict = judge(plan, busy)
    assert verdict.fits
    assert verdict.capacity is not None
    assert verdict.capacity.tables == 64 * 2 * 1792 * 8192 * 2 > verdict.capacity.gpus[0].spare
    assert verdict.misses == (
        "GPU 0 lacks 15.3 MB for prompt tables: those of 64 requests take 3.8 GB, decoder_engine.kv_cache_fraction "
        "0.902 leaves 3.7 GB",
    )
    assert judge(plan, dataclasses.replace(busy, concurrency=63)).ok


def test_a_cache_too_small_for_all_requests_falls_short(deploy: Deploy, one_image: Workload) -> None:
    engine = {"kv_cache_fraction": 0.8}
    plan = deploy(tp=2, decoder_precision="fp8", max_batch_size=64, max_input_len=16_384, decoder_engine=engine)
    verdict = judge(plan, dataclasses.replace(one_image, concurrency=50))
    assert verdict.fits
    assert verdict.misses == ("the KV cache holds 43 requests, not 50",)
