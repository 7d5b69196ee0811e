"""GPU memory while a subject is measured, as nvidia-smi tells it: no library is needed, no CUDA context is made."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

from nvlm_trt.environment.gpus import used_bytes

PERIOD_S: Final = 0.5


class GpuMemoryWatch:
    """A context manager that looks every half second how much memory the GPUs of this machine have in use.

    Memory of single processes would leave out what a container hides, so it is the whole GPUs', less what was in use
    when it was entered.

    Args:
        period_s: Seconds between two looks.
    """

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._ended = threading.Event()
        self._seen: list[int] = []
        self._thread = threading.Thread(target=self._look_often, name="gpu-memory", daemon=True)

    def peak_bytes(self) -> int | None:
        """The most memory in use so far, all GPUs added up, beyond what was in use before; None if nobody tells."""
        self._look()
        return max(self._seen) - self._seen[0] if self._seen else None

    def __enter__(self) -> Self:
        self._look()
        if self._seen:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look_often(self) -> None:
        while not self._ended.wait(self._period_s):
            self._look()

    def _look(self) -> None:
        used = used_bytes()
        if used is not None:
            self._seen.append(used)
