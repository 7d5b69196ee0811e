"""The first request, which counts for nothing else."""

from __future__ import annotations

from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.spread import quartiles


class FirstRequest(Metric):
    """The very first request after loading, which pays for everything that is done once.

    Formula: TTFT of the first request of each round.
    """

    name, title, unit, better, section = "first_ttft", "first request's TTFT", "ms", "lower", "warm-up"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [1e3 * done.warmup[0].ttft_s for done in measured.rounds if done.warmup]


class WarmUpCost(Metric):
    """What the first request loses.

    Formula: TTFT of the first request / median TTFT of that round's requests that ran alone.
    """

    name, title, unit, better, section = "warmup_factor", "first request / later ones", "x", "lower", "warm-up"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        found = []
        for done in measured.rounds:
            wave = done.wave(1)
            if done.warmup and wave:
                later = quartiles([request.ttft_s for request in wave.requests]).value
                found += [done.warmup[0].ttft_s / later] if later else []
        return found
