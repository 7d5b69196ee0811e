"""Figures of ours on the server's metrics port, for as long as their model is loaded.

A metric of the Python backend tells the server of its end. It has to end in the model's `finalize`: what is left to the
end of the interpreter finds the way to the server gone and ends the process by SIGSEGV (2.51), its figures stay shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import triton_python_backend_utils as pb_utils

Shown = Mapping[str, tuple[str, str]]
"""Metrics by name: the member of the status that each shows, and its description."""

VISION_CACHE_COUNTERS: Final[Shown] = {
    "nvlm_vision_cache_hits_total": ("hits", "Tiles whose rows were there, or were being made for another"),
    "nvlm_vision_cache_misses_total": ("misses", "Tiles that were encoded"),
    "nvlm_vision_cache_evictions_total": ("evictions", "Tiles whose rows had to make room for others"),
}
VISION_CACHE_GAUGES: Final[Shown] = {
    "nvlm_vision_cache_tiles": ("tiles", "Tiles whose rows are in the cache"),
    "nvlm_vision_cache_bytes": ("bytes", "Memory of the rows in the cache"),
    "nvlm_vision_cache_max_bytes": ("max_bytes", "Memory that the rows in the cache may take"),
}
KV_COUNTERS: Final[Shown] = {
    "nvlm_kv_prompt_tokens_total": ("prompt_tokens", "Tokens of the prompts that were admitted"),
    "nvlm_kv_reused_tokens_total": ("reused_tokens", "Tokens of prompts that the KV cache held already"),
    "nvlm_kv_evicted_blocks_total": ("evicted_blocks", "Blocks whose contents were given up for room"),
    "nvlm_decoder_tokens_total": ("answer_tokens", "Tokens of answers that were computed"),
    "nvlm_decoder_steps_total": ("steps", "Steps of the decoder"),
    "nvlm_decoder_step_seconds_total": ("step_seconds", "Time that the decoder's steps took together"),
}
KV_GAUGES: Final[Shown] = {
    "nvlm_kv_blocks": ("num_blocks", "Blocks of the KV cache"),
    "nvlm_kv_free_blocks": ("free_blocks", "Blocks that no request holds"),
    "nvlm_kv_cached_blocks": ("cached_blocks", "Blocks whose contents requests to come can share"),
    "nvlm_kv_running_requests": ("running", "Requests in the batch"),
    "nvlm_kv_waiting_requests": ("waiting", "Requests that wait for a place in the batch or for blocks"),
}


SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Seconds:
    """A histogram of durations. Belongs to the thread that observes.

    Args:
        name: Of the metric.
        description: Of the metric.
    """

    def __init__(self, name: str, description: str) -> None:
        # A family has to outlive its metric.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.HISTOGRAM)
        self._metric = self._family.Metric(labels={}, buckets=list(SECONDS))

    def observe(self, seconds: float) -> None:
        """Note a duration."""
        self._metric.observe(seconds)

    def close(self) -> None:
        """Show it no more; nothing is observed after that."""
        del self._metric
        del self._family


class StatusMetrics:
    """Shows members of a status. Belongs to the thread that reports.

    Args:
        counters: Members that only grow.
        gauges: The others.
    """

    def __init__(self, counters: Shown, gauges: Shown) -> None:
        kinds = pb_utils.MetricFamily
        # A family has to outlive its metric.
        self._counters = [(member, _family(name, text, kinds.COUNTER)) for name, (member, text) in counters.items()]
        self._gauges = [(member, _family(name, text, kinds.GAUGE)) for name, (member, text) in gauges.items()]
        self._told: object = None

    def report(self, status: object) -> None:
        """Bring the metrics up to date; each that changed costs a call to the server."""
        for member, (_, counter) in self._counters:
            grown = getattr(status, member) - getattr(self._told, member, 0)
            if grown:
                counter.increment(grown)
        for member, (_, gauge) in self._gauges:
            if getattr(status, member) != getattr(self._told, member, None):
                gauge.set(getattr(status, member))
        self._told = status

    def close(self) -> None:
        """Show them no more; what is reported after that goes nowhere."""
        self._counters.clear()
        self._gauges.clear()


def _family(name: str, description: str, kind: Any) -> tuple[Any, Any]:
    family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
    return family, family.Metric(labels={})


class ModelMetrics:
    """Owns the metrics of a model: makes them, and ends them."""

    def __init__(self) -> None:
        self._made: list[Seconds | StatusMetrics] = []

    def seconds(self, name: str, description: str) -> Seconds:
        """A histogram of durations."""
        made = Seconds(name, description)
        self._made.append(made)
        return made

    def status(self, counters: Shown, gauges: Shown) -> StatusMetrics:
        """Metrics of members of a status."""
        made = StatusMetrics(counters, gauges)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Show none of them any more, whoever still holds them. May be called twice."""
        while self._made:
            self._made.pop().close()
