"""Metrics on made-up rounds, by hand."""

from __future__ import annotations

import pytest

from nvlm_trt.bench.metrics import METRICS, Measured, Metric, all_metrics
from nvlm_trt.bench.metrics.cost import Accuracy, EngineMemory, LoadTime, PeakGpuMemory, PeakHostMemory, SizeOnDisk
from nvlm_trt.bench.metrics.disturbance import OthersLoad
from nvlm_trt.bench.metrics.first import FirstKnownImage, FirstNewImage, FirstText
from nvlm_trt.bench.metrics.load import (
    ImageThroughput,
    InterTokenLatency,
    RequestLatency,
    TimeToFirstToken,
    TokenThroughput,
)
from nvlm_trt.bench.metrics.parts import (
    DecodeBandwidth,
    DecodeShare,
    PrefillRate,
    PrefillShare,
    PrefillThroughput,
    TileThroughput,
    VisionRate,
    VisionShare,
)
from nvlm_trt.bench.metrics.reuse import NewImage, RepeatedImage, RepeatedQuestion, SecondTurn
from nvlm_trt.bench.metrics.scale import (
    DecodeRate,
    DecodeReadShare,
    ImageShare,
    ImageTiles,
    ImageTtft,
    PromptRate,
    PromptShare,
    StreamThroughput,
)
from nvlm_trt.bench.metrics.stall import HighGap, LargestGap, LongPrompt
from nvlm_trt.bench.metrics.warmup import FirstRequest, WarmUpCost
from nvlm_trt.bench.record import RequestRecord, RoundRecord, WaveRecord
from nvlm_trt.bench.work import reference_work
from nvlm_trt.model.synthetic import tiny_spec
from nvlm_trt.plan.flops import prefill_flops, vision_flops_per_tile

from .made_up import made_cases, made_request, made_round

CONFIG = tiny_spec(tile_size=112).config
WORK = reference_work(CONFIG, "fp32")
MEASURED = Measured(
    rounds=(made_round(0.5, 0.7), made_round(0.9).model_copy(update={"cases": made_cases()})),
    work=WORK,
    read_ceiling=10e9,
    product_ceilings={"fp32": 100e9, "bf16": 1e9},
    size_bytes=5_000_000,
    scores=(1.0, 0.0, 0.5),
)
CONTEXT = 100 + 6
FLOPS = prefill_flops(CONFIG.decoder, 100)
STEP_S = 0.1


@pytest.mark.parametrize(
    ("metric", "samples"),
    [
        (Accuracy(), [100.0, 0.0, 50.0]),
        (SizeOnDisk(), [5.0]),
        (LoadTime(), [2.0, 2.0]),
        (PeakHostMemory(), [356.0, 356.0]),
        (PeakGpuMemory(), []),
        (EngineMemory(), [256.0, 256.0]),
        (TimeToFirstToken(1), [500.0, 700.0, 900.0]),
        (TimeToFirstToken(2), [1000.0, 2000.0] * 2),
        (InterTokenLatency(1), [100.0] * 3),
        (InterTokenLatency(2), [200.0] * 4),
        (RequestLatency(1), [1500.0, 1700.0, 1900.0]),
        (RequestLatency(2), [3000.0, 4000.0] * 2),
        (TokenThroughput(1), [22 / 4, 11 / 2]),
        (TokenThroughput(2), [22 / 4] * 2),
        (ImageThroughput(2), [2 / 4] * 2),
        (TileThroughput(), [15.0] * 3),
        (PrefillThroughput(), [100 / 0.2, 100 / 0.4, 100 / 0.6]),
        (VisionRate(), [3 * vision_flops_per_tile(CONFIG) / 0.2 / 1e9] * 3),
        (VisionShare(), [3 * vision_flops_per_tile(CONFIG) / 0.2 / 100e9 * 100] * 3),
        (PrefillRate(), [FLOPS / seconds / 1e9 for seconds in (0.2, 0.4, 0.6)]),
        (PrefillShare(), [FLOPS / seconds / 100e9 * 100 for seconds in (0.2, 0.4, 0.6)]),
        (DecodeBandwidth(), [(WORK.step_bytes + CONTEXT * WORK.token_bytes) / STEP_S / 1e9] * 3),
        (DecodeShare(), [(WORK.step_bytes + CONTEXT * WORK.token_bytes) / STEP_S / 10e9 * 100] * 3),
        (FirstRequest(), [4000.0, 4000.0]),
        (WarmUpCost(), [4.0 / 0.6, 4.0 / 0.9]),
        (OthersLoad(), [0.05, 0.05]),
        (NewImage(), [2000.0]),
        (RepeatedImage(), [0.25]),
        (RepeatedQuestion(), [0.125]),
        (SecondTurn(), [0.2]),
        (LargestGap(), [3.0]),  # 0.3 s, and 0.1 s before
        (HighGap(), [2.96]),  # of 0.1, 0.1 and 0.3 s
        (LongPrompt(), [350.0]),
        (PromptRate(size=512), [500.0]),
        (PromptRate(size=2048), []),
        (PromptShare(size=512), [prefill_flops(CONFIG.decoder, 512) / 1.024 / 100e9 * 100]),
        (DecodeRate(size=1), [10.0]),
        (DecodeRate(size=2), [4.0]),
        (DecodeReadShare(size=2), [(WORK.step_bytes + 2 * 66 * WORK.token_bytes) / 0.5 / 10e9 * 100]),
        (StreamThroughput(size=4), [8 / 5]),
        (ImageTtft(size=3), [700.0]),
        (ImageTiles(size=3), [5.0]),
        (FirstText(size=2), [100.0, 300.0]),
        (FirstNewImage(size=2), [1500.0, 2500.0]),
        (FirstKnownImage(size=2), [200.0, 400.0]),
        (ImageShare(size=3), [5 * vision_flops_per_tile(CONFIG) / 100e9 * 100]),
    ],
    ids=lambda value: value.name if isinstance(value, Metric) else "",
)
def test_a_metric_follows_its_formula(metric: Metric, samples: list[float]) -> None:
    assert metric.samples(MEASURED) == pytest.approx(samples)


def test_every_metric_is_checked_above_and_says_what_it_is() -> None:
    (mark,) = test_a_metric_follows_its_formula.pytestmark  # type: ignore[attr-defined]
    assert {metric.name for metric, _ in mark.args[1]} == set(METRICS)
    for metric in METRICS.values():
        assert len(metric.formula()) > 20
        assert metric.formula().endswith(".")
        assert metric.title
        assert metric.unit
        assert metric.better in ("higher", "lower")
    titles = [metric.title for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)


def test_nothing_measured_gives_no_samples_rather_than_zeros() -> None:
    for metric in all_metrics((1, 2), MEASURED.rounds):
        assert metric.samples(Measured(rounds=())) == []


def test_a_server_has_no_parts_and_no_memory_of_its_own() -> None:
    request = RequestRecord(ttft_s=0.5, total_s=1.5, prompt_tokens=100, output_tokens=11, images=1)
    wave = WaveRecord(concurrency=1, wall_s=1.5, requests=(request,))
    done = RoundRecord(load_s=None, before_bytes=None, peak_bytes=None, warmup=(request,), waves=(wave,))
    seen = {metric.name for metric in all_metrics((1,)) if metric.samples(Measured(rounds=(done,)))}
    assert seen == {"ttft", "itl", "latency", "tokens_per_s", "images_per_s", "first_ttft", "warmup_factor"}
    served = Measured(rounds=(done,), work=WORK, read_ceiling=10e9)
    assert DecodeBandwidth().samples(served) == []  # its tokens may have arrived together


def test_sizes_of_a_metric_are_those_that_were_measured() -> None:
    sizes = {
        metric.name: [each.size for each in all_metrics((), MEASURED.rounds) if each.name == metric.name]
        for metric in (PromptRate, DecodeRate, ImageTtft)
    }
    assert sizes == {"prompt_tokens_per_s": [256, 512, 1024], "decode_tokens_per_s": [1, 2], "image_ttft": [1, 3, 7]}


def test_vision_that_nobody_times_is_what_an_image_takes_longer_than_a_text_of_as_many_tokens() -> None:
    (image,) = (case for case in made_cases() if case.scenario == "vision" and case.size == 3)
    asked = image.requests[0].model_copy(update={"vision_s": None})
    image = image.model_copy(update={"requests": (asked,)})
    text = image.model_copy(update={"case": "text", "requests": (asked.model_copy(update={"ttft_s": 0.1}),)})
    seen, unseen = (made_round(0.5).model_copy(update={"cases": cases}) for cases in ((image, text), (image,)))
    assert ImageTiles(size=3).samples(Measured((seen,))) == pytest.approx([3 / 0.6])
    assert ImageTiles(size=3).samples(Measured((unseen,))) == []


def test_arithmetic_without_a_measured_ceiling_has_a_rate_but_no_share() -> None:
    measured = Measured(rounds=MEASURED.rounds, work=WORK, product_ceilings={"bf16": 1e9})
    assert VisionRate().samples(measured)
    assert VisionShare().samples(measured) == []
    assert DecodeBandwidth().samples(measured)
    assert DecodeShare().samples(measured) == []
    assert PromptShare(size=512).samples(measured) == DecodeReadShare(size=1).samples(measured) == []
    assert ImageShare(size=3).samples(measured) == []


def test_an_answer_of_one_token_has_no_inter_token_latency() -> None:
    request = made_request().model_copy(update={"output_tokens": 1})
    wave = WaveRecord(concurrency=1, wall_s=1.0, requests=(request,))
    measured = Measured(rounds=(made_round(0.5).model_copy(update={"waves": (wave,)}),), work=WORK)
    assert InterTokenLatency(1).samples(measured) == []
    assert DecodeBandwidth().samples(measured) == []


def test_accuracy_is_the_mean_with_its_interval_and_not_the_median() -> None:
    spread = Accuracy().spread([100.0, 100.0, 100.0, 0.0])
    assert spread.value == 75.0
    assert spread.kind == "wilson95"
    assert 0 < spread.low < 75 < spread.high < 100
