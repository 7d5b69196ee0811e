"""Every cell of the roofline tables that were worked out by hand for NVLM-D-72B, to 2 %.

The literals are those of the tables, as printed there. A cell that is printed with few digits stands for all that
rounds to it: 1.5 for 1.456. The tables keep the seven dummy heads and count memory as one pool; where the planner
differs, the test says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nvlm_trt.datasheets.datasheet import load_gpu
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.tensors import vision_tensors
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.flops import (
    attention_flops,
    encoder_flops_per_tile,
    prefill_flops,
    projector_flops_per_tile,
    vision_flops_per_tile,
)
from nvlm_trt.plan.memory import GpuMemory, kv_tokens
from nvlm_trt.plan.roofline import Roofline
from nvlm_trt.plan.sizes import (
    kv_bytes_per_token,
    rank_weights,
    tile_tensor_bytes,
    vision_engine_bytes,
)

Deploy = Callable[..., Deployment]
TERA, GIGA, MEGA = 1e12, 1e9, 1e6
FP8_CACHE = {"kv_cache_precision": "fp8"}
BF16 = {"decoder_precision": "bf16"}
FP8 = {"decoder_precision": "fp8"}
INT4 = {"decoder_precision": "int4_awq", "decoder_engine": FP8_CACHE}


def agrees(value: float, printed: str) -> bool:
    """Whether a value is the printed one to 2 %, or rounds to it."""
    decimals = len(printed.partition(".")[2])
    return value == pytest.approx(float(printed), rel=0.02) or f"{value:.{decimals}f}" == printed


def with_dummy_heads(config: NvlmConfig) -> int:
    """Bytes of a vision engine in bf16 with the checkpoint's seven dummy heads, which ours has not."""
    more, less = (sum(math.prod(shape) for shape in vision_tensors(config, heads).values()) for heads in (7, 0))
    return vision_engine_bytes(config, "bf16") + 2 * (more - less)


def test_agreeing_means_two_percent_or_the_printed_digits() -> None:
    assert agrees(1.456, "1.5")
    assert agrees(264.3, "264.3")
    assert agrees(101.9, "100.0")
    assert not agrees(102.1, "100.0")
    assert not agrees(1.44, "1.5")


@pytest.mark.parametrize(
    ("dummy_heads", "encoder", "with_projector", "seven", "tile_ms", "seven_ms", "fp8_ms", "rate", "fp8_rate"),
    [
        (7, "13.17", "13.49", "94.4", "13.6", "95.5", "47.7", "73", "147"),
        (0, "11.95", "12.26", "85.8", "12.4", "86.8", "43.4", "81", "161"),
    ],
)
def test_vision(
    dummy_heads: int,
    encoder: str,
    with_projector: str,
    seven: str,
    tile_ms: str,
    seven_ms: str,
    fp8_ms: str,
    rate: str,
    fp8_rate: str,
    deploy: Deploy,
) -> None:
    config, gpu = deploy().config, load_gpu("h100-sxm")
    tile = vision_flops_per_tile(config, dummy_heads)
    assert agrees(encoder_flops_per_tile(config, dummy_heads) / TERA, encoder)
    assert agrees(tile / TERA, with_projector)
    assert agrees(7 * tile / TERA, seven)
    assert agrees(1e3 * tile / gpu.peak("bf16"), tile_ms)
    assert agrees(7e3 * tile / gpu.peak("bf16"), seven_ms)
    assert agrees(7e3 * tile / gpu.peak("fp8"), fp8_ms)
    assert agrees(gpu.peak("bf16") / tile, rate)
    assert agrees(gpu.peak("fp8") / tile, fp8_rate)


def test_vision_parts(deploy: Deploy) -> None:
    config = deploy().config
    assert agrees(projector_flops_per_tile(config) / TERA, "0.318")
    without_attention = 45 * 2 * 1025 * (4 * 3200 * 3200 + 2 * 3200 * 12800) + 2 * 1024 * 588 * 3200
    assert agrees((encoder_flops_per_tile(config) - without_attention) / TERA, "0.60")


@pytest.mark.parametrize(("precision", "seven_ms"), [("bf16", "86.8"), ("fp8", "43.4")])
@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm"])
def test_the_plan_counts_vision_without_dummy_heads(gpu: str, precision: str, seven_ms: str, deploy: Deploy) -> None:
    plan = deploy(gpu, vision_precision=precision, vision_engine={"gpus": 1})
    assert agrees(Roofline(plan).vision(7).milliseconds, seven_ms)


@pytest.mark.parametrize(("tp", "milliseconds"), [(2, "55"), (4, "27"), (8, "14")])
def test_spreading_seven_tiles(tp: int, milliseconds: str, deploy: Deploy) -> None:
    """The table's figures are of 32 heads: 4, 2 and 1 tile on the busiest GPU; the plan has 25."""
    plan = deploy(tp=tp)
    heads = vision_flops_per_tile(plan.config, 7) / vision_flops_per_tile(plan.config)
    assert agrees(Roofline(plan).vision(7).milliseconds * heads, milliseconds)


@pytest.mark.parametrize(
    ("tokens", "teraflops", "bf16", "fp8"),
    [
        (256, "36.0", ("36", "18", "9", "5"), ("18", "9", "5", "2")),
        (1792, "255.9", ("259", "129", "65", "32"), ("129", "65", "32", "16")),
        (1850, "264.3", ("267", "134", "67", "33"), ("134", "67", "33", "17")),
        (4096, "597.2", ("604", "302", "151", "75"), ("302", "151", "75", "38")),
    ],
)
def test_prefill(tokens: int, teraflops: str, bf16: tuple[str, ...], fp8: tuple[str, ...], deploy: Deploy) -> None:
    """The table's times are those of the arithmetic; the plan also knows that weights must be read."""
    assert agrees(prefill_flops(deploy().decoder, tokens) / TERA, teraflops)
    for precision, row in (("bf16", bf16), ("fp8", fp8)):
        for tp, milliseconds in zip((1, 2, 4, 8), row, strict=True):
            bound = Roofline(deploy(tp=tp, decoder_precision=precision)).prefill(tokens)
            assert agrees(1e3 * bound.compute_s, milliseconds)
            assert bound.by == ("memory" if tokens == 256 else "compute")


def test_prefill_attention(deploy: Deploy) -> None:
    assert agrees(attention_flops(deploy().decoder, 1792) / TERA, "4.2")


@pytest.mark.parametrize(
    ("fields", "gigabytes", "gpu", "milliseconds", "rates"),
    [
        (BF16, "143.6", "h100-sxm", ("42.9", "21.4", "10.7", "5.4"), ("23", "47", "93", "187")),
        (BF16, "143.6", "h200-sxm", ("29.9", "15.0", "7.5", "3.7"), ("33", "67", "134", "267")),
        (FP8, "73.0", "h100-sxm", ("21.8", "10.9", "5.5", "2.7"), ("46", "92", "183", "367")),
        (FP8, "73.0", "h200-sxm", ("15.2", "7.6", "3.8", "1.9"), ("66", "131", "263", "526")),
        (INT4, "39.0", "h100-sxm", ("11.7", "5.8", "2.9", "1.5"), ("86", "172", "343", "687")),
        (INT4, "39.0", "h200-sxm", ("8.1", "4.1", "2.0", "1.0"), ("123", "246", "492", "984")),
    ],
)
def test_decode(
    fields: dict[str, object],
    gigabytes: str,
    gpu: str,
    milliseconds: tuple[str, ...],
    rates: tuple[str, ...],
    deploy: Deploy,
) -> None:
    for tp, time, rate in zip((1, 2, 4, 8), milliseconds, rates, strict=True):
        plan = deploy(gpu, tp=tp, **fields)
        step = Roofline(plan).step(1, 2048)
        assert agrees(step.memory_s * plan.gpu.bandwidth * tp / GIGA, gigabytes)
        assert agrees(step.milliseconds, time)
        assert agrees(1 / step.seconds, rate)


@pytest.mark.parametrize(("gpu", "batch"), [("h100-sxm", "295"), ("h200-sxm", "206")])
@pytest.mark.parametrize("fields", [BF16, FP8])
def test_the_batch_that_turns_compute_bound(gpu: str, batch: str, fields: dict[str, object], deploy: Deploy) -> None:
    assert agrees(Roofline(deploy(gpu, **fields)).compute_bound_batch(), batch)


def test_weights(deploy: Deploy) -> None:
    def bytes_of(plan: Deployment) -> float:
        return rank_weights(plan.decoder, plan.ranks[0], plan.precision).total / GIGA

    bf16 = deploy(**BF16)
    assert agrees(bytes_of(bf16), "145.4")
    assert agrees(bytes_of(deploy(**FP8)), "75.2")
    weights = rank_weights(bf16.decoder, bf16.ranks[0], bf16.precision)
    assert agrees(weights.linear / 2 / GIGA, "70.215")
    assert agrees(weights.head / 2 / GIGA, "1.246")
    assert agrees(weights.read_per_step / 2 / GIGA, "71.46")
    config = bf16.config
    assert agrees(with_dummy_heads(config) / GIGA, "13.35")
    assert agrees(vision_engine_bytes(config, "bf16") / GIGA, "12.3")
    dummies = with_dummy_heads(config) - vision_engine_bytes(config, "bf16")
    assert agrees(dummies / GIGA, "1.03")
    assert agrees(100 - 100 * vision_flops_per_tile(config) / vision_flops_per_tile(config, 7), "9")


@pytest.mark.parametrize(("fields", "kibibytes", "image"), [(BF16, "320", "587"), (FP8, "160", "294")])
def test_kv_cache(fields: dict[str, object], kibibytes: str, image: str, deploy: Deploy) -> None:
    plan = deploy(**fields)
    size = kv_bytes_per_token(plan.decoder, plan.ranks[0], plan.precision)
    assert agrees(size / 1024, kibibytes)
    assert agrees(1792 * size / MEGA, image)


@pytest.mark.parametrize(
    ("gpu", "count", "fields", "copies", "thousand_tokens", "concurrent"),
    [
        ("h200-sxm", 1, FP8, 1, "213", "111"),
        ("h100-sxm", 2, FP8, 1, "296", "155"),
        ("h100-sxm", 2, FP8, 2, "214", "112"),
        ("h200-sxm", 2, BF16, 1, "269", "141"),
        ("h200-sxm", 2, BF16, 2, "228", "119"),
        ("h100-sxm", 4, BF16, 1, "352", "185"),
        ("h100-sxm", 4, BF16, 4, "229", "120"),
        ("h100-sxm", 4, FP8, 1, "1132", "595"),
        ("h100-sxm", 4, FP8, 4, "887", "467"),
        ("h100-sxm", 2, BF16, 1, "0", "0"),
    ],
)
def test_fit_in_one_pool(
    gpu: str, count: int, fields: dict[str, object], copies: int, thousand_tokens: str, concurrent: str, deploy: Deploy
) -> None:
    """The table's memory: one pool of 90 %, the embedding and `copies` vision engines with dummy heads spread evenly.

    The plan counts GPU by GPU: the embedding is on each, no dummy heads, and prompt tables and activations besides.
    """
    plan = deploy(gpu, tp=count, **fields)
    whole = deploy(gpu, tp=1, **fields)
    weights = rank_weights(whole.decoder, whole.ranks[0], whole.precision).total
    vision = copies * with_dummy_heads(plan.config)
    part = GpuMemory(
        memory=plan.gpu.memory_bytes,
        usable=int(plan.assumptions.memory_share * plan.gpu.memory_bytes),
        reserve=plan.assumptions.reserve_bytes,
        decoder=weights // count,
        vision=vision // count,
        prompt_table=0,
        activations=0,
        kv_per_token=kv_bytes_per_token(plan.decoder, plan.ranks[0], plan.precision),
        kv_fraction=plan.recipe.decoder_engine.kv_cache_fraction,
    )
    tokens = kv_tokens([part] * count, 32)
    assert agrees(tokens / 1000, thousand_tokens)
    assert agrees(tokens // 1900, concurrent)


def test_tensors_of_a_request(deploy: Deploy) -> None:
    plan = deploy()
    assert agrees(tile_tensor_bytes(plan.config, 7) / MEGA, "4.2")
    assert agrees(2 * tile_tensor_bytes(plan.config, 7) / MEGA, "8.4")
    assert agrees(4 * tile_tensor_bytes(plan.config, 7) / MEGA, "16.9")
    assert agrees(4 * tile_tensor_bytes(plan.config, 7) * 4 / 3 / MEGA, "22.5")
    assert agrees(plan.prompt_table_bytes(1792) / MEGA, "29.4")
    assert agrees(8 * plan.prompt_table_bytes(1792) / MEGA, "235")
    batch_of_eight = deploy(max_batch_size=8, max_images=1)
    assert batch_of_eight.recipe.max_batch_size * batch_of_eight.sources.max_table_rows == 14_336
    assert batch_of_eight.prompt_buffer_bytes == 8 * plan.prompt_table_bytes(1792)
