"""Peak resident memory of this process and its children while a block runs."""

from __future__ import annotations

from threading import Event, Thread
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.05
CHILDREN_EVERY = 10
"""Samples between two looks for new children: every process of the machine is asked for its parent then."""


class PeakMemory:
    """A context manager that samples; `peak_bytes` holds the largest sum of resident sizes met.

    Pages of a file that is mapped count as resident, as they do for the kernel's own limits of a container.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._samples = 0
        self._stop = Event()
        self._thread = Thread(target=self._sample_until_stopped, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _sample_until_stopped(self) -> None:
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(SAMPLE_SECONDS)

    def _sample(self) -> None:
        total = self._process.memory_info().rss
        if self._samples % CHILDREN_EVERY == 0:
            self._children = self._process.children(recursive=True)
        self._samples += 1
        for child in self._children:
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)
