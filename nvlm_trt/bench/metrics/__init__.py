"""Every figure of the report: one small class each, with its unit, which way is better, and its formula."""

from __future__ import annotations

from collections.abc import Iterable

from nvlm_trt.bench.metrics.base import Better, Measured, Metric, Section, SizeUnit
from nvlm_trt.bench.metrics.cost import (
    Accuracy,
    EngineMemory,
    LoadTime,
    PeakGpuMemory,
    PeakHostMemory,
    SizeOnDisk,
)
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
    SizedMetric,
    StreamThroughput,
)
from nvlm_trt.bench.metrics.stall import HighGap, LargestGap, LongPrompt
from nvlm_trt.bench.metrics.warmup import FirstRequest, WarmUpCost
from nvlm_trt.bench.record import RoundRecord

__all__ = ["METRICS", "Better", "Measured", "Metric", "Section", "SizeUnit", "all_metrics"]

ONCE: tuple[type[Metric], ...] = (
    Accuracy,
    SizeOnDisk,
    LoadTime,
    PeakHostMemory,
    EngineMemory,
    PeakGpuMemory,
    TileThroughput,
    PrefillThroughput,
    VisionRate,
    VisionShare,
    PrefillRate,
    PrefillShare,
    DecodeBandwidth,
    DecodeShare,
    FirstRequest,
    WarmUpCost,
    OthersLoad,
    NewImage,
    RepeatedImage,
    RepeatedQuestion,
    SecondTurn,
    LargestGap,
    HighGap,
    LongPrompt,
)
PER_CONCURRENCY: tuple[type[Metric], ...] = (
    TimeToFirstToken,
    InterTokenLatency,
    RequestLatency,
    TokenThroughput,
    ImageThroughput,
)
PER_SIZE: tuple[type[SizedMetric], ...] = (
    PromptRate,
    PromptShare,
    DecodeRate,
    DecodeReadShare,
    StreamThroughput,
    ImageTtft,
    ImageTiles,
    ImageShare,
    FirstText,
    FirstNewImage,
    FirstKnownImage,
)
METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in (*ONCE, *PER_CONCURRENCY, *PER_SIZE)}
"""By name, in the order of the report."""


def all_metrics(concurrencies: Iterable[int], rounds: Iterable[RoundRecord] = ()) -> list[Metric]:
    """Every metric: those under load once for each concurrency, those of sizes once for each size.

    Args:
        concurrencies: Of the load.
        rounds: Where sizes are looked for.
    """
    levels = list(concurrencies)
    sizes = sorted({(case.scenario, case.size) for done in rounds for case in done.cases if case.size is not None})
    return [
        *(metric() for metric in ONCE),
        *(metric(level) for metric in PER_CONCURRENCY for level in levels),
        *(metric(size=size) for metric in PER_SIZE for name, size in sizes if name == metric.scenario),
    ]
