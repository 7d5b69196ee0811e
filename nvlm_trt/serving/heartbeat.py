"""Signs of life of the model processes: a file each, beaten by a thread, read by the supervisor.

The supervisor names the directory in the environment; a server started by hand has none, and nothing is written.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEARTBEAT_DIR: Final = "NVLM_TRT_HEARTBEAT_DIR"
INTERVAL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Beat:
    """The last sign of life of a process.

    Attributes:
        model: Whose process it is.
        pid: Its id.
        at: `time.monotonic()` of the beat, which all processes of a machine share.
        active: Requests that it was working on.
    """

    model: str
    pid: int
    at: float
    active: int


def _always() -> bool:
    return True


def _none() -> int:
    return 0


class Heartbeat:
    """Beats from a thread of its own until stopped.

    Args:
        model: Name of the model.
        healthy: Asked before each beat; no beat while it says no.
        active: Requests that the process is working on.
    """

    def __init__(self, model: str, *, healthy: Callable[[], bool] = _always, active: Callable[[], int] = _none) -> None:
        directory = os.environ.get(HEARTBEAT_DIR)
        self._file = Path(directory, f"{model}.{os.getpid()}") if directory else None
        self._healthy = healthy
        self._active = active
        self._stopped = threading.Event()
        if self._file is not None:
            threading.Thread(target=self._run, name="nvlm-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the thread; the file is left for the supervisor to see."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            self._beat()
            if self._stopped.wait(INTERVAL_SECONDS):
                return

    def _beat(self) -> None:
        if self._file is None or not self._healthy():
            return
        try:
            # Beside and renamed, so that a reader never meets half a line.
            fresh = self._file.with_suffix(f"{self._file.suffix}.new")
            fresh.write_text(f"{time.monotonic()} {self._active()}")
            fresh.replace(self._file)
        except OSError:
            self._stopped.set()  # the directory went away with its supervisor


def read_beats(directory: Path) -> list[Beat]:
    """The last beat of every process that ever beat in a directory."""
    beats = []
    for file in sorted(directory.iterdir()):
        model, _, pid = file.name.partition(".")
        if pid.isdecimal():
            at, active = file.read_text().split()
            beats.append(Beat(model, int(pid), float(at), int(active)))
    return beats
