"""Whether a soak passed, and by which figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .load import Tally
from .watch import Sample

MB: Final = 1_000_000
MOST_GROWTH_MB: Final = 100.0
"""Triton's own bar (qa/L0_memory_growth)."""

MOST_FDS_LEFT: Final = 16
MOST_THREADS_LEFT: Final = 16
"""More than before, once all clients have gone; one of a hundred requests that left something would be far beyond."""

WARM_UP_SHARE: Final = 0.1
LEAST_WARM_UP: Final = 30.0
MOST_WARM_UP: Final = 600.0
WINDOW_SHARE: Final = 0.05
LEAST_IN_WINDOW: Final = 3
LEAST_ON_LINE: Final = 2
LEAST_UNSEEN: Final = 30.0
"""Seconds at the end that a run may be without a sample; a long one as many as make up the window."""


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside its bound.

    Attributes:
        name: What is measured.
        seen: The figure; NaN where there is none, which is a fault.
        most: What it may be at most.
        unit: Of both.
    """

    name: str
    seen: float
    most: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound."""
        return self.seen <= self.most


def warm_up_of(duration: float) -> float:
    """Seconds from the beginning that don't count: a tenth of the run, from 30 s to 10 minutes."""
    return min(max(WARM_UP_SHARE * duration, LEAST_WARM_UP), MOST_WARM_UP, duration / 2)


def growth(samples: Sequence[Sample], warm_up: float, value: Callable[[Sample], float]) -> float:
    """Median of the last twentieth of the run less the median of as many samples after the warm-up; NaN without any."""
    counted = [value(sample) for sample in samples if sample.at >= warm_up]
    if not counted:
        return math.nan
    size = max(LEAST_IN_WINDOW, round(WINDOW_SHARE * len(counted)))
    return statistics.median(counted[-size:]) - statistics.median(counted[:size])


def slope_per_hour(samples: Sequence[Sample], warm_up: float, value: Callable[[Sample], float]) -> float:
    """What a straight line through all samples after the warm-up gains in an hour; NaN where there is no line."""
    counted = [sample for sample in samples if sample.at >= warm_up]
    if len(counted) < LEAST_ON_LINE:
        return math.nan
    line = statistics.linear_regression([sample.at for sample in counted], [value(sample) for sample in counted])
    return line.slope * 3600


def judge(
    samples: Sequence[Sample], tally: Tally, idle: tuple[Sample, Sample], warm_up: float, duration: float
) -> list[Check]:
    """All checks.

    Args:
        samples: Taken under load, in order.
        tally: What became of the requests.
        idle: The server without clients, warm, before the load and after it.
        warm_up: Seconds of `samples` that don't count.
        duration: Seconds of the load.
    """

    def grown(value: Callable[[Sample], float]) -> float:
        return growth(samples, warm_up, value) / MB

    def left(*names: str) -> float:
        """What the server shows at the end; NaN where it does not."""
        return sum(after.figures.get(name, math.nan) for name in names)

    before, after = idle
    restarts = after.restarts - before.restarts
    replaced = {each.pid for each in before.processes.values()} ^ {each.pid for each in after.processes.values()}
    unseen = max(0.0, duration - samples[-1].at) if samples else duration
    return [
        Check("time at the end without a look", unseen, max(LEAST_UNSEEN, WINDOW_SHARE * duration), "s"),
        Check("growth of memory (PSS of all processes)", grown(lambda one: one.pss), MOST_GROWTH_MB, "MB"),
        Check("growth of shared memory", grown(lambda one: one.shm), MOST_GROWTH_MB, "MB"),
        Check("wrong answers", len(tally.wrong), 0),
        Check("lost answers", len(tally.lost), 0),
        Check("bad requests that were not refused as they have to be", len(tally.misjudged), 0),
        Check("restarts", restarts, 0),
        Check("processes that came or went", len(replaced), 0),
        Check("requests left in the gateway", left("nvlm_requests_working", "nvlm_requests_waiting"), 0),
        Check("bytes left in the gateway's buffers", left("nvlm_buffered_bytes"), 0),
        Check("requests left in the decoder", left("nvlm_kv_running_requests", "nvlm_kv_waiting_requests"), 0),
        Check("KV blocks that nobody gave back", left("nvlm_kv_blocks") - left("nvlm_kv_free_blocks"), 0),
        Check("file descriptors left", after.fds - before.fds, MOST_FDS_LEFT),
        Check("threads left", after.threads - before.threads, MOST_THREADS_LEFT),
    ]
