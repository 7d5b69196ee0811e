"""Memory, threads and files of the server's processes, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

GAUGES: Final[Mapping[str, tuple[str, Callable[[psutil.Process], int]]]] = {
    "nvlm_process_resident_memory_bytes": ("Resident memory.", lambda one: one.memory_info().rss),
    "nvlm_process_open_fds": ("Open file descriptors.", lambda one: one.num_fds()),
    "nvlm_process_threads": ("Threads.", lambda one: one.num_threads()),
}


class ProcessCollector(Collector):
    """Looks at processes when it is asked.

    Args:
        processes: Ids by names, as of now.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """One sample of each metric for each process that lives."""
        gauges = {name: GaugeMetricFamily(name, text, labels=["process"]) for name, (text, _) in GAUGES.items()}
        cpu = CounterMetricFamily("nvlm_process_cpu_seconds", "Time of cores that were used.", labels=["process"])
        for process, pid in self._processes().items():
            try:
                one = psutil.Process(pid)
                with one.oneshot():
                    seen = {name: read(one) for name, (_, read) in GAUGES.items()}
                    times = one.cpu_times()
            except psutil.Error:  # it ended meanwhile
                continue
            for name, value in seen.items():
                gauges[name].add_metric([process], value)
            cpu.add_metric([process], times.user + times.system)
        yield from (*gauges.values(), cpu)
