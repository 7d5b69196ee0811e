"""What TensorRT tells while it works: messages into a file and to the caller, nested phases as one progress.

TensorRT calls from threads of its own, and its bindings print an exception of a callback and go on. So callbacks keep
the first exception (Ctrl+C is one), ask TensorRT to stop, and whoever called TensorRT raises it again.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, TextIO

from nvlm_trt.progress import Log, Progress

ERRORS_KEPT = 20
ERRORS = ("INTERNAL_ERROR", "ERROR")
KEPT = (*ERRORS, "WARNING", "INFO")
"""Severities that go into the file; VERBOSE is gigabytes for a model of this size."""


class Callbacks:
    """Everything that TensorRT tells during one build; may be called from any thread.

    Args:
        file: Takes every message, one a line.
        log: Told each warning once.
        progress: Told bytes.
        total: Bytes that stand for the whole build.
    """

    def __init__(self, file: TextIO, log: Log, progress: Progress | None, total: int) -> None:
        self.failure: BaseException | None = None
        self.error_count = 0
        self._file, self._log = file, log
        self._progress, self._total = progress, total
        self._errors: deque[str] = deque(maxlen=ERRORS_KEPT)
        self._warned: set[str] = set()
        self._phases = Phases()
        self._told = 0
        self._lock = threading.RLock()

    @property
    def reasons(self) -> list[str]:
        """The last errors that TensorRT told, or a sentence in their place."""
        with self._lock:
            return list(self._errors) or ["TensorRT gives no reason"]

    def say(self, severity: str, text: str) -> None:
        """Take a message."""
        with self._guarded():
            if severity in KEPT:
                self._file.write(f"[{severity}] {text}\n")
                self._file.flush()
            if severity in ERRORS:
                self.error_count += 1
                self._errors.append(text)
            if severity == "WARNING" and text not in self._warned:
                self._warned.add(text)
                self._log(f"TensorRT: {text}")

    def start_phase(self, name: str, parent: str | None, steps: int) -> None:
        """Take the beginning of a phase."""
        with self._guarded():
            self._phases.start(name, parent, steps)

    def finish_step(self, name: str, step: int) -> bool:
        """Take the end of a phase's step; whether the build shall go on."""
        with self._guarded():
            self._phases.finish_step(name, step)
            self._tell()
        return self.failure is None

    def finish_phase(self, name: str) -> None:
        """Take the end of a phase."""
        with self._guarded():
            self._phases.finish(name)

    def raise_failure(self) -> None:
        """Raise what a callback raised, if one did."""
        if self.failure is not None:
            raise self.failure

    def _tell(self) -> None:
        """Tell progress if there is some; the last byte is told by who knows that the engine works."""
        done = min(int(self._phases.fraction() * self._total), self._total - 1)
        if self._progress is not None and done > self._told:
            self._told = done
            self._progress(done, self._total)

    def _guarded(self) -> _Guard:
        return _Guard(self, self._lock)


class _Guard:
    """Holds the lock, and keeps an exception instead of letting it into TensorRT."""

    def __init__(self, callbacks: Callbacks, lock: threading.RLock) -> None:
        self._callbacks, self._lock = callbacks, lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if self._callbacks.failure is None:
            self._callbacks.failure = error
        self._lock.release()
        return True


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """How far nested phases are together. Names are unique among those that run (TensorRT, IProgressMonitor)."""

    def __init__(self) -> None:
        self._running: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` begins inside the running step of its parent."""
        self._running[name] = _Phase(parent, max(1, steps))

    def finish_step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        phase = self._running.get(name)
        if phase is not None:
            phase.done = min(step + 1, phase.steps)

    def finish(self, name: str) -> None:
        """A phase ends, perhaps before its last step."""
        self._running.pop(name, None)

    def fraction(self) -> float:
        """Share of the outermost running phase that is done, 0 to 1; it may fall where a phase ends early."""
        return self._fraction_below(None)

    def _fraction_below(self, parent: str | None) -> float:
        below = [(name, phase) for name, phase in self._running.items() if phase.parent == parent]
        return max((self._fraction_of(name, phase) for name, phase in below), default=0.0)

    def _fraction_of(self, name: str, phase: _Phase) -> float:
        inside = self._fraction_below(name) if phase.done < phase.steps else 0.0
        return (phase.done + inside) / phase.steps


def make_logger(trt: Any, callbacks: Callbacks) -> Any:
    """TensorRT's logger (trt.ILogger) over `callbacks`."""

    class Logger(trt.ILogger):  # type: ignore[misc] # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            callbacks.say(severity.name, msg)

    return Logger()


def make_monitor(trt: Any, callbacks: Callbacks) -> Any:
    """TensorRT's progress monitor (trt.IProgressMonitor) over `callbacks`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the package has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            callbacks.start_phase(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return callbacks.finish_step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            callbacks.finish_phase(phase_name)

    return Monitor()
