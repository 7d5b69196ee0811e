"""What requests see follows from the bounds of the parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.roofline import Roofline
from nvlm_trt.plan.workload import Workload, speed_of

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="module")
def plan(deploy: Deploy) -> Deployment:
    return deploy(tp=4, decoder_precision="fp8", max_batch_size=50)


def test_a_request_is_counted_in_tokens(one_image: Workload) -> None:
    assert (one_image.total_tiles, one_image.visual_tokens) == (7, 1792)
    assert (one_image.prompt_tokens, one_image.request_tokens, one_image.mean_context) == (1850, 1900, 1875)
    two = dataclasses.replace(one_image, images=2, tiles=3)
    assert (two.total_tiles, two.visual_tokens) == (6, 1536)


def test_one_request_waits_for_nobody(plan: Deployment, one_image: Workload) -> None:
    speed = speed_of(plan, one_image)
    roofline = Roofline(plan)
    assert speed.first_token_s == roofline.vision(7).seconds + roofline.prefill(1850).seconds
    assert speed.ttft_s == speed.burst_ttft_s == speed.first_token_s
    assert speed.step.engine == roofline.step(1, 1875)
    assert speed.mean_itl_s == speed.step.seconds == roofline.step(1, 1875).seconds + roofline.tables(1, 1792)
    assert speed.requests_per_s == pytest.approx(1 / (speed.first_token_s + 50 * speed.step.seconds))


def test_many_requests_share_the_gpus(plan: Deployment, one_image: Workload) -> None:
    """In one round of 50 requests: 50 times vision and prefill, and as many steps as an answer has tokens."""
    speed = speed_of(plan, dataclasses.replace(one_image, concurrency=50))
    roofline = Roofline(plan)
    step = roofline.step(50, 1875).seconds + roofline.tables(50, 1792)
    others = roofline.step(49, 1875).seconds + roofline.tables(49, 1792)
    assert speed.ttft_s == pytest.approx(others + speed.first_token_s)
    assert speed.burst_ttft_s == pytest.approx(50 * speed.first_token_s)
    round_s = 50 * speed.first_token_s + 50 * step
    assert speed.requests_per_s == pytest.approx(50 / round_s)
    assert speed.output_tokens_per_s == pytest.approx(50 * 50 / round_s)
    assert speed.first_token_s + 50 * speed.mean_itl_s == pytest.approx(round_s)
    assert speed.period_s > speed.first_token_s


@pytest.mark.parametrize(("most", "batches"), [(1, (1,)), (8, (1, 2, 4, 8)), (50, (1, 2, 4, 8, 16, 32, 50))])
def test_steps_go_up_to_the_engines_batch(
    most: int, batches: tuple[int, ...], deploy: Deploy, one_image: Workload
) -> None:
    steps = speed_of(deploy(max_batch_size=most), one_image).steps
    assert tuple(step.batch for step in steps) == batches
    assert steps[-1].tokens_per_s == pytest.approx(most / steps[-1].seconds)


def test_without_images_no_table_is_copied(plan: Deployment, one_image: Workload) -> None:
    speed = speed_of(plan, dataclasses.replace(one_image, images=0))
    assert speed.step.tables_s == 0
    assert speed.step.seconds == speed.step.engine.seconds


@settings(max_examples=40)
@given(tiles=st.integers(1, 12), images=st.integers(0, 4), concurrency=st.integers(1, 64))
def test_more_tiles_images_and_neighbours_never_make_it_faster(
    tiles: int, images: int, concurrency: int, plan: Deployment
) -> None:
    def seen(tiles: int, images: int, concurrency: int) -> tuple[float, float, float]:
        speed = speed_of(plan, Workload(images, tiles, 256, 58, 50, concurrency))
        return speed.ttft_s, speed.burst_ttft_s, speed.mean_itl_s

    here = seen(tiles, images, concurrency)
    for more in ((tiles + 1, images, concurrency), (tiles, images + 1, concurrency), (tiles, images, concurrency + 1)):
        assert all(before <= after for before, after in zip(here, seen(*more), strict=True))
