"""Figures of ours on the server's metrics port."""

from __future__ import annotations

from typing import Any, Final

import triton_python_backend_utils as pb_utils

from nvlm_trt.vision.cache import VisionCacheStatus

PREFIX: Final = "nvlm_vision_cache_"
COUNTERS: Final = {
    "hits": "Tiles whose rows were there, or were being made for another",
    "misses": "Tiles that were encoded",
    "evictions": "Tiles whose rows had to make room for others",
}
GAUGES: Final = {
    "tiles": "Tiles whose rows are in the cache",
    "bytes": "Memory of the rows in the cache",
    "max_bytes": "Memory that the rows in the cache may take",
}


class VisionCacheMetrics:
    """``nvlm_vision_cache_hits_total`` and the like. Belongs to the thread that reports."""

    def __init__(self) -> None:
        kinds = pb_utils.MetricFamily
        # A family has to outlive its metric.
        self._counters = {name: _family(f"{name}_total", text, kinds.COUNTER) for name, text in COUNTERS.items()}
        self._gauges = {name: _family(name, text, kinds.GAUGE) for name, text in GAUGES.items()}
        self._told: VisionCacheStatus | None = None

    def report(self, status: VisionCacheStatus) -> None:
        """Bring the metrics up to date; each that changed costs a call to the server."""
        for name, (_, counter) in self._counters.items():
            grown = getattr(status, name) - (getattr(self._told, name) if self._told else 0)
            if grown:
                counter.increment(grown)
        for name, (_, gauge) in self._gauges.items():
            if self._told is None or getattr(status, name) != getattr(self._told, name):
                gauge.set(getattr(status, name))
        self._told = status


def _family(name: str, description: str, kind: Any) -> tuple[Any, Any]:
    family = pb_utils.MetricFamily(name=PREFIX + name, description=description, kind=kind)
    return family, family.Metric(labels={})
