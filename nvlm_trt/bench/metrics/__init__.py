"""Every figure of the report: one small class each, with its unit, which way is better, and its formula."""

from __future__ import annotations

from collections.abc import Iterable

from nvlm_trt.bench.metrics.base import Better, Measured, Metric, Section
from nvlm_trt.bench.metrics.cost import (
    Accuracy,
    EngineMemory,
    LoadTime,
    PeakGpuMemory,
    PeakHostMemory,
    SizeOnDisk,
)
from nvlm_trt.bench.metrics.disturbance import OthersLoad
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
from nvlm_trt.bench.metrics.warmup import FirstRequest, WarmUpCost

__all__ = ["METRICS", "Better", "Measured", "Metric", "Section", "all_metrics"]

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
)
PER_CONCURRENCY: tuple[type[Metric], ...] = (
    TimeToFirstToken,
    InterTokenLatency,
    RequestLatency,
    TokenThroughput,
    ImageThroughput,
)
METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in (*ONCE, *PER_CONCURRENCY)}
"""By name, in the order of the report."""


def all_metrics(concurrencies: Iterable[int]) -> list[Metric]:
    """Every metric, those under load once for each concurrency."""
    levels = list(concurrencies)
    return [*(metric() for metric in ONCE), *(metric(level) for metric in PER_CONCURRENCY for level in levels)]
