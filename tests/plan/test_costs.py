"""Costs of a build are the stages' own estimates; a time that nobody measured is not invented."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from nvlm_trt.pipeline.stages import build_plan
from nvlm_trt.plan.costs import DIGEST, STREAMED, build_costs
from nvlm_trt.plan.deployment import Deployment

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="module")
def plan(deploy: Deploy) -> Deployment:
    return deploy(tp=4, decoder_precision="bf16")


def test_disk_and_memory_are_what_the_build_itself_asks_for(plan: Deployment) -> None:
    digest, *costs = build_costs(plan.sources, 1e9).stages
    stages = build_plan(plan.sources)
    assert [cost.name for cost in costs] == [stage.name for stage in stages]
    for cost, stage in zip(costs, stages, strict=True):
        assert (cost.disk_bytes or 0, cost.memory_bytes or 0) == (
            stage.estimate.disk_bytes,
            stage.estimate.memory_bytes,
        )
    assert (digest.name, digest.read_bytes) == (DIGEST, 176_901_927_168)


def test_the_disk_of_a_build_leaves_out_what_a_stage_frees_before_the_next(deploy: Deploy) -> None:
    calibrated = deploy(tp=4, decoder_precision="int8_sq")
    costs = build_costs(calibrated.sources, 1e9)
    work = {stage.name: stage.estimate.work_bytes for stage in build_plan(calibrated.sources)}
    assert work["decoder-calibrate"] > 1e9
    assert costs.disk_bytes == sum(cost.disk_bytes or 0 for cost in costs.stages) - sum(work.values())


def test_copying_stages_take_what_the_disk_takes(plan: Deployment) -> None:
    """Vision and projector are read as stored, F32 in part, and written in bf16 without dummy heads."""
    slow = {cost.name: cost for cost in build_costs(plan.sources, 1e9).stages}
    fast = {cost.name: cost for cost in build_costs(plan.sources, 2e9).stages}
    export = slow["vision-export"]
    assert export.read_bytes == 176_901_927_168 - slow["decoder-convert"].read_bytes  # type: ignore[operator]
    assert export.disk_bytes == pytest.approx(12.31e9, rel=0.01)
    assert export.seconds == pytest.approx((export.read_bytes + export.disk_bytes) / 1e9)  # type: ignore[operator]
    assert fast["vision-export"].seconds == export.seconds / 2  # type: ignore[operator]
    assert slow[DIGEST].seconds == pytest.approx(176.9, rel=0.001)


def test_what_computes_is_unknown_until_measured(plan: Deployment) -> None:
    costs = build_costs(plan.sources, 1e9).stages
    unknown = {cost.name for cost in costs if cost.seconds is None}
    assert {"vision-compile", "decoder-compile", "verify"} <= unknown
    assert not unknown & {*STREAMED, DIGEST}
    assert set(STREAMED) <= {cost.name for cost in costs}


def test_a_split_that_cannot_be_has_no_costs(deploy: Deploy) -> None:
    costs = build_costs(deploy(tp=3).sources, 1e9)
    assert costs.stages == ()
    assert "cannot be split over tp 3" in str(costs.unknown)


def test_without_the_libraries_of_the_stages_the_costs_are_unknown(
    plan: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvlm_trt.vision.export", None)
    costs = build_costs(plan.sources, 1e9)
    assert costs.stages == ()
    assert "extra gpu" in str(costs.unknown)
