"""How long running streams stand still while a long prompt is read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from nvlm_trt.bench.arrivals import Gaps, gaps
from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.record import CaseRecord


class LargestGap(Metric):
    """The worst moment of a running stream.

    Formula: largest gap between two tokens of the running streams, of those gaps that lie wholly or partly between the
    arrival of a long prompt with an image and its first token / median of the same streams' gaps before it came; one
    sample a repetition of scenario `stall`. Streams that end before that first token do not count; arrivals that follow
    each other by less than a quarter of the stream's mean gap before the long prompt came are one.
    """

    name, title, unit, better, section = "largest_gap", "largest gap / median gap", "x", "lower", "stall"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        return [max(found.disturbed) / statistics.median(found.calm) for found in _gaps(measured)]


class HighGap(Metric):
    """A bad moment of a running stream.

    Formula: 99th percentile (linear between the two nearest) of the gaps that `largest gap` is the largest of / median
    of the same streams' gaps before the long prompt came; one sample a repetition.
    """

    name, title, unit, better, section = "p99_gap", "99th percentile of gaps / median gap", "x", "lower", "stall"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        return [float(np.percentile(each.disturbed, 99)) / statistics.median(each.calm) for each in _gaps(measured)]


class LongPrompt(Metric):
    """What the long prompt waits beside the running streams: the price of not letting them stall.

    Formula: TTFT of the long prompt while the streams run; one sample a repetition.
    """

    name, title, unit, better, section = "long_prompt_ttft", "TTFT of the long prompt", "ms", "lower", "stall"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        return [1e3 * case.requests[-1].ttft_s for case in _cases(measured)]


def _gaps(measured: Measured) -> Iterator[Gaps]:
    return (found for case in _cases(measured) if (found := gaps(case)).calm and found.disturbed)


def _cases(measured: Measured) -> Iterator[CaseRecord]:
    return (case for done in measured.rounds for case in done.cases_of("stall", "long prompt"))
