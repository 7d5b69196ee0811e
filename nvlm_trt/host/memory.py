"""Memory of a server's processes: which of them leaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Final

import psutil

from nvlm_trt.environment.memory import memory
from nvlm_trt.host.shm import region_bytes

MIB: Final = 1 << 20
SHARE_OF_FREE: Final = 0.75
"""Of the memory that was at hand when the server became ready: growth of one process beyond it is a leak, unless the
operator says another bound. A KV cache takes up to half of it, as it is used."""

SCARCE_SHARE: Final = 0.05
"""Of the machine's memory: with less at hand, the process that grew most is ended before the kernel ends another."""

LOOK_SECONDS: Final = 1.0
LOOKS: Final = 3
"""So many looks in a row have to show it: a request with large images comes and goes."""

SHARED: Final = "shared memory"


class Leak:
    """Watches how much processes have grown since they were ready, and the shared memory of all of them.

    Args:
        processes: The processes, by their names.
        shm_prefix: How the names of the shared regions begin.
        bound: Bytes by which one of them may grow; None for a share of the memory at hand now.
    """

    def __init__(self, processes: Mapping[str, psutil.Process], shm_prefix: str, bound: int | None) -> None:
        self._processes = processes
        self._prefix = shm_prefix
        total, free = memory()
        self._bound = int(free * SHARE_OF_FREE) if bound is None else bound
        self._scarce = int(total * SCARCE_SHARE)  # bytes
        self._before = self._sizes()
        self._looked = time.monotonic()
        self._looks = 0
        self._found = False

    def found(self) -> str | None:
        """What leaks, in a few words; looks once a second, however often it is asked."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        grown = {name: size - self._before.get(name, size) for name, size in self._sizes().items()}
        name = max(grown, key=grown.__getitem__, default=None)
        scarce = memory().available < self._scarce
        if name is None or (grown[name] <= self._bound and not (scarce and grown[name] > self._scarce)):
            self._looks = 0
            return None
        self._looks += 1
        if self._looks < LOOKS and not scarce:
            return None
        self._found = True
        what = "leaks" if grown[name] > self._bound else "has grown most, and memory is scarce"
        return f"{name} {what}: {grown[name] // MIB} MiB more than when it was ready (bound {self._bound // MIB})"

    @property
    def is_urgent(self) -> bool:
        """Whether the machine is about to run out of memory because of what was found."""
        return self._found and memory().available < self._scarce

    def _sizes(self) -> dict[str, int]:
        sizes = {SHARED: region_bytes(self._prefix)}
        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                held = process.memory_info()
                sizes[name] = held.rss - held.shared
        return sizes
