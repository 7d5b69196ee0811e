"""How busy other processes keep the machine while a subject is measured: the first thing to look at in a report."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

import psutil

QUIET_CORES: Final = 0.2
"""Up to here the machine counts as quiet."""

NOT_QUIET: Final = "**the machine was not quiet**"
"""How the remark of a report about it begins."""

IDLE: Final = ("idle", "iowait", "guest", "guest_nice")
"""Not busy; the time of guests is in that of users already (proc_stat(5))."""


class ForeignLoad:
    """A context manager; afterwards `cores` is how many cores others kept busy on average.

    ``(busy time of all cores - processor time of this process and of those below it) / wall time``; time that the
    hypervisor gave to others ("steal") counts as busy.
    """

    def __init__(self) -> None:
        self.cores = 0.0

    def __enter__(self) -> Self:
        self._begun = busy_seconds(), own_seconds(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        busy, own, started = self._begun
        wall = time.perf_counter() - started
        foreign = (busy_seconds() - busy) - (own_seconds() - own)
        self.cores = max(0.0, foreign / wall) if wall else 0.0


def busy_seconds() -> float:
    """Seconds that all cores together have been busy since the machine was started."""
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in IDLE))


def own_seconds() -> float:
    """Processor time of this process and of those below it that live."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
