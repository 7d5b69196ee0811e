"""What is watched: memory, descriptors and threads of every process of the server, shared memory, its own figures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from nvlm_trt.host.shm import region_bytes

FIGURES: Final = (
    "nvlm_requests_working",
    "nvlm_requests_waiting",
    "nvlm_buffered_bytes",
    "nvlm_server_restarts_total",
    "nvlm_kv_blocks",
    "nvlm_kv_free_blocks",
    "nvlm_kv_cached_blocks",
    "nvlm_kv_running_requests",
    "nvlm_kv_waiting_requests",
    "nvlm_kv_evicted_blocks_total",
    "nvlm_vision_cache_bytes",
    "nvlm_vision_cache_evictions_total",
)


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """A process of the server. Sizes in bytes; `pss` counts what is shared by its share."""

    pid: int
    rss: int
    pss: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment.

    Attributes:
        at: Seconds since the watch began.
        processes: By what they are: gateway, tritonserver, models by name.
        shm: Bytes of the server's regions in /dev/shm.
        figures: Of FIGURES, those that the server shows.
        load: Runnable processes of the machine, mean of a minute.
    """

    at: float
    processes: Mapping[str, ProcessFigures]
    shm: int
    figures: Mapping[str, float]
    load: float

    @property
    def pss(self) -> int:
        """Memory of all processes, what they share counted once."""
        return sum(each.pss for each in self.processes.values())

    @property
    def restarts(self) -> float:
        """How often the server was replaced; a counter that never counted is not shown."""
        return self.figures.get("nvlm_server_restarts_total", 0.0)

    @property
    def fds(self) -> int:
        """Descriptors of all processes."""
        return sum(each.fds for each in self.processes.values())

    @property
    def threads(self) -> int:
        """Threads of all processes."""
        return sum(each.threads for each in self.processes.values())


class Watch:
    """Looks at a server.

    Args:
        pid: Of `nvlm-trt serve`.
    """

    def __init__(self, pid: int) -> None:
        self._server = psutil.Process(pid)
        self._began = time.monotonic()

    def look(self, metrics: str) -> Sample:
        """The server now.

        Args:
            metrics: What its /metrics says.
        """
        processes = {}
        for process in (self._server, *self._server.children(recursive=True)):
            try:
                processes[self._name(process)] = _figures(process)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        return Sample(
            at=time.monotonic() - self._began,
            processes=processes,
            shm=region_bytes(f"nvlm_trt_{self._server.pid}_"),
            figures=read_figures(metrics),
            load=os.getloadavg()[0],
        )

    def _name(self, process: psutil.Process) -> str:
        if process == self._server:
            return "gateway"
        words = process.cmdline()
        if words and "stub" in Path(words[0]).name:
            return next((Path(word).parts[-3] for word in words[1:] if word.endswith("model.py")), "a model")
        return "tritonserver" if words and "tritonserver" in " ".join(words) else process.name()


def read_figures(metrics: str) -> dict[str, float]:
    """The figures of FIGURES in Prometheus' text, summed over their labels."""
    figures: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in FIGURES:
                figures[sample.name] = figures.get(sample.name, 0.0) + sample.value
    return figures


def _figures(process: psutil.Process) -> ProcessFigures:
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return ProcessFigures(
        pid=process.pid,
        rss=kilobytes["Rss"] * 1024,
        pss=kilobytes["Pss"] * 1024,
        fds=process.num_fds(),
        threads=process.num_threads(),
    )
