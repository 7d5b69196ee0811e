"""Times are the larger of arithmetic and memory traffic; corrections do what their names say, and only they."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.datasheets.datasheet import Corrections
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.roofline import Bound, Roofline

Deploy = Callable[..., Deployment]


def corrected(plan: Deployment, **values: float) -> Roofline:
    """The roofline with corrections."""
    measured = {name: {"value": value, "source": "a test"} for name, value in values.items()}
    corrections = Corrections.model_validate(measured)
    return Roofline(dataclasses.replace(plan, gpu=plan.gpu.model_copy(update={"corrections": corrections})))


def test_a_bound_is_the_larger_of_both() -> None:
    assert (Bound(2.0, 1.0).seconds, Bound(2.0, 1.0).by) == (2.0, "compute")
    assert (Bound(1.0, 2.0).seconds, Bound(1.0, 2.0).by) == (2.0, "memory")
    assert Bound(1.0, 2.0, communication_s=0.5).milliseconds == 2500


def test_small_work_is_bound_by_reading_the_weights(deploy: Deploy) -> None:
    """All of them, embedding aside, are read for 16 tokens as for one."""
    plan = deploy(tp=8, decoder_precision="bf16")
    roofline = Roofline(plan)
    assert roofline.prefill(16).by == "memory"
    assert roofline.prefill(16).seconds == pytest.approx(142.9e9 / 8 / 3.35e12, rel=0.01)
    assert Roofline(deploy(vision_precision="bf16")).vision(1).memory_s == pytest.approx(12.31e9 / 3.35e12, rel=0.01)


@pytest.mark.parametrize(("gpus", "busiest"), [(1, 7), (2, 4), (4, 2), (8, 1)])
def test_tiles_spread_over_the_gpus_with_a_vision_engine(gpus: int, busiest: int, deploy: Deploy) -> None:
    plan = deploy(tp=8, vision_engine={"gpus": gpus})
    alone = deploy(tp=8, vision_engine={"gpus": 1})
    assert Roofline(plan).vision(7).compute_s == pytest.approx(Roofline(alone).vision(busiest).compute_s)


def test_without_images_vision_takes_no_time(deploy: Deploy) -> None:
    assert Roofline(deploy()).vision(0).seconds == 0


def test_a_step_of_many_requests_is_bound_by_arithmetic(deploy: Deploy) -> None:
    roofline = Roofline(deploy(tp=4, decoder_precision="fp8"))
    limit = roofline.compute_bound_batch()
    assert roofline.step(limit // 2, 1).by == "memory"
    assert roofline.step(limit * 2, 1).by == "compute"


def test_four_bit_weights_turn_compute_bound_at_a_quarter_of_the_batch(deploy: Deploy) -> None:
    """Codes of half a byte, a bf16 scale for 128 of them, multiplied in bf16."""
    batch = Roofline(deploy(decoder_precision="int4_awq")).compute_bound_batch()
    assert batch == pytest.approx(989e12 * (0.5 + 2 / 128) / 2 / 3.35e12, rel=0.01)


def test_stages_of_a_pipeline_follow_one_another(deploy: Deploy) -> None:
    one, two = Roofline(deploy(tp=2)), Roofline(deploy(tp=2, pp=2))
    assert two.step(4, 1000).seconds == pytest.approx(one.step(4, 1000).seconds, rel=1e-4)
    assert two.prefill(1850).seconds == one.prefill(1850).seconds


@pytest.mark.parametrize("cut", [{"tp": 1}, {"tp": 8}, {"tp": 2, "pp": 2}])
def test_every_rank_copies_every_prompt_table_at_every_step(cut: dict[str, object], deploy: Deploy) -> None:
    """Read and written: 2 x 50 x 29.4 MB at 3.35 TB/s."""
    assert Roofline(deploy(**cut)).tables(50, 1792) == pytest.approx(2 * 50 * 1792 * 8192 * 2 / 3.35e12)
    assert Roofline(deploy(**cut)).tables(50, 0) == 0


def test_all_reduces_are_counted_with_a_correction_only(deploy: Deploy) -> None:
    """A ring: 2 (tp - 1) / tp of each payload, two payloads a layer, one direction of the link."""
    plan = deploy(tp=4)
    plain = Roofline(plan)
    sent = 2 * 80 * 1850 * 8192 * 2 * 2 * 3 / 4
    assert plain.all_reduce_bytes(1850) == sent
    assert plain.prefill(1850).communication_s == plain.step(1, 1850).communication_s == 0
    linked = corrected(plan, interconnect_share=0.5, all_reduce_latency_us=10)
    assert linked.prefill(1850).communication_s == pytest.approx(sent / (450e9 * 0.5) + 160 * 10e-6)
    assert linked.step(1, 1850).communication_s == pytest.approx(160 * 10e-6)


@pytest.mark.parametrize(
    ("cut", "crosses"),
    [
        ({"tp": 8, "gpus_per_node": 8}, False),
        ({"tp": 8, "pp": 2, "gpus_per_node": 8}, False),
        ({"tp": 8, "gpus_per_node": 4}, True),
        ({"tp": 4, "pp": 2, "gpus_per_node": 6}, True),
    ],
)
def test_the_speed_of_all_reduces_between_nodes_is_not_that_of_the_interconnect(
    cut: dict[str, int], crosses: bool, deploy: Deploy
) -> None:
    linked = corrected(deploy(**cut), interconnect_share=0.5)
    assert linked.deployment.reduces_over_network is crosses
    assert (linked.all_reduce_s(1850) is None) is crosses
    assert (linked.prefill(1850).communication_s == 0) is crosses
    assert linked.all_reduce_bytes(1850) > 0


def test_one_gpu_reduces_nothing(deploy: Deploy) -> None:
    alone = corrected(deploy(tp=1), interconnect_share=0.5, all_reduce_latency_us=10)
    assert alone.prefill(1850).communication_s == alone.all_reduce_bytes(1850) == 0


def test_a_share_of_a_peak_slows_its_part_alone(deploy: Deploy) -> None:
    plan = deploy(tp=4)
    plain = Roofline(plan)
    vision = corrected(plan, vision_share_of_peak=0.5)
    assert vision.vision(7).seconds == 2 * plain.vision(7).seconds
    assert vision.prefill(1850) == plain.prefill(1850)
    prefill = corrected(plan, prefill_share_of_peak=0.5)
    assert prefill.prefill(1850).seconds == 2 * plain.prefill(1850).seconds
    assert prefill.vision(7) == plain.vision(7)
    assert prefill.step(1, 1850).memory_s == plain.step(1, 1850).memory_s
    decode = corrected(plan, decode_share_of_bandwidth=0.5)
    assert decode.step(1, 1850).seconds == 2 * plain.step(1, 1850).seconds
    assert decode.tables(1, 1792) == plain.tables(1, 1792)
    assert decode.prefill(1850) == plain.prefill(1850)
    assert decode.compute_bound_batch() == pytest.approx(2 * plain.compute_bound_batch(), abs=1)


@pytest.fixture(scope="module")
def plan(deploy: Deploy) -> Deployment:
    return deploy(decoder_precision="fp8")


@settings(max_examples=40)
@given(tokens=st.integers(1, 30_000), tp=st.sampled_from([1, 2, 4]), batch=st.integers(1, 512))
def test_more_work_takes_longer_and_more_gpus_do_not(tokens: int, tp: int, batch: int, plan: Deployment) -> None:
    few, many = Roofline(plan.changed(tp=tp)), Roofline(plan.changed(tp=2 * tp))
    assert few.prefill(tokens).seconds <= few.prefill(tokens + 1).seconds
    assert few.step(batch, tokens).seconds < few.step(batch + 1, tokens).seconds
    assert few.step(batch, tokens).seconds < few.step(batch, tokens + 1).seconds
    assert many.prefill(tokens).seconds < few.prefill(tokens).seconds
    assert many.step(batch, tokens).seconds < few.step(batch, tokens).seconds
