"""Signs of life of the model processes: a file each, beaten by a thread, read by the supervisor.

The supervisor names the directory in the environment; a server started by hand has none, and nothing is written.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvlm_trt.serving.silence import Silence

HEARTBEAT_DIR: Final = "NVLM_TRT_HEARTBEAT_DIR"
INTERVAL_SECONDS: Final = 0.5

COMPUTING_SHARE: Final = 0.03
"""Of one core, that a process uses which computes; one whose threads wait for each other uses a tenth of that."""

LONGEST_STEP_SECONDS: Final = 120.0
"""A step that computes for longer never ends."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The last sign of life of a process.

    Attributes:
        model: Whose process it is.
        pid: Its id.
        at: `time.monotonic()` of the beat, which all processes of a machine share.
        active: Requests that it was working on.
        still: Seconds for which its work had stood still, though there was some; infinite where it cannot go on.
    """

    model: str
    pid: int
    at: float
    active: int
    still: float = 0.0


class Work:
    """What one thread is at: one piece of work after the other, or none.

    Attributes:
        begun: Pieces that it has begun.
        going: Whether it is at one.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.going = False
        self._clock: int | None = None

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Be at a piece of work."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self.begun, self.going = self.begun + 1, True
        try:
            yield
        finally:
            self.going = False

    @property
    def position(self) -> int | None:
        """For `Progress`: which piece it is at, None between two."""
        return self.begun if self.going else None

    def computed(self) -> float:
        """For `Progress`: seconds of computing of the thread; what other threads compute is none of its work."""
        try:
            return 0.0 if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # the thread has ended
            return 0.0


class Progress:
    """For how long the work of this process has stood still.

    A long step and a deadlock look alike from outside, but a step computes: work that has not gone on stands still only
    if the process computes nothing meanwhile, or if that takes longer than any step. Time in which the whole process
    was frozen counts for neither: ask several times a second.

    Args:
        position: Changes while the work goes on; None while there is none.
        longest: Seconds that a step may compute.
        clock: Seconds, from any beginning.
        computed: Seconds of computing of what does the work: this process, or a thread of it.
    """

    def __init__(
        self,
        position: Callable[[], object],
        *,
        longest: float = LONGEST_STEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        computed: Callable[[], float] = time.process_time,
    ) -> None:
        self._position = position
        self._longest = longest
        self._silence: Silence[str] = Silence(clock)
        self._computed = computed
        self._computed_since = 0.0

    def __call__(self) -> float:
        """Seconds; 0 while the work goes on, or while there is none."""
        position, computed = self._position(), self._computed()
        still = self._silence.of({} if position is None else {"work": position}).get("work", 0.0)
        if still == 0.0:
            self._computed_since = computed
        computes = computed - self._computed_since >= COMPUTING_SHARE * still
        return 0.0 if computes and still < self._longest else still


def _never() -> float:
    return 0.0


def shared_directory() -> Path | None:
    """The directory that all model processes of a server share, for as long as it runs; None where there is none."""
    directory = os.environ.get(HEARTBEAT_DIR)
    return Path(directory) if directory else None


def _none() -> int:
    return 0


class Heartbeat:
    """Beats from a thread of its own until stopped.

    Args:
        model: Name of the model.
        still: Seconds for which the work of the process has stood still.
        active: Requests that the process is working on.
    """

    def __init__(self, model: str, *, still: Callable[[], float] = _never, active: Callable[[], int] = _none) -> None:
        directory = shared_directory()
        self._file = directory / f"{model}.{os.getpid()}" if directory else None
        self._still = still
        self._active = active
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if self._file is not None:
            self._thread = threading.Thread(target=self._run, name="nvlm-heartbeat", daemon=True)
            self._thread.start()

    def condemn(self) -> None:
        """From now on tell that the work stands still for good: only another process can go on with it."""
        self._still = lambda: math.inf

    def stop(self) -> None:
        """End the thread and take the file away: the process ends in order, with no work left."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._beat()
            self._stopped.wait(INTERVAL_SECONDS)
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        if self._file is None:
            return
        try:
            # Beside and renamed, so that a reader never meets half a line.
            fresh = self._file.with_suffix(f"{self._file.suffix}.new")
            fresh.write_text(f"{time.monotonic()} {self._active()} {self._still()}")
            fresh.replace(self._file)
        except OSError:  # of a full disk the next beat may know nothing any more
            if not self._file.parent.is_dir():
                self._stopped.set()  # it went away with its supervisor


def read_beats(directory: Path) -> list[Beat]:
    """The last beat of every process that beat in a directory and did not end in order; none without the directory."""
    beats = []
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        model, _, pid = file.name.partition(".")
        if pid.isdecimal():
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                at, active, still = file.read_text().split()
                beats.append(Beat(model, int(pid), float(at), int(active), float(still)))
    return beats
