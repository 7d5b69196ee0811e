"""Keep a server alive: watch it, replace it when it fails, give up when that does not help."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from nvlm_trt.errors import ServerError

WATCH_SECONDS: Final = 0.25
GOOD_HEALTH_SECONDS: Final = 60.0
"""A server that lived so long was well; the next failure is counted as a first one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """What happened to the server.

    Attributes:
        kind: "ready", "lost" (it failed, its ports are closed, another one follows), "failed" (no more attempts) or
            "stopped".
        detail: What was wrong, where something was.
    """

    kind: Literal["ready", "lost", "failed", "stopped"]
    detail: str = ""


class CrashedError(ServerError):
    """A server that crashed while it started: not its configuration's fault, so it is tried again."""


class Process(Protocol):
    """One run of the server."""

    def wait_ready(self, stop: threading.Event) -> None:
        """Return when it is ready or `stop` is set; raise ServerError when it will not be."""

    def fault(self) -> str | None:
        """What is wrong with it; None while it is well."""

    def stop(self) -> None:
        """Let requests under way finish, then end it."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a failing server is replaced.

    Attributes:
        max_failures: Failures in a row after which it is given up.
        first_pause: Seconds before the first replacement; each further one doubles it.
    """

    max_failures: int = 5
    first_pause: float = 0.5


class Supervisor:
    """Runs servers one after the other, in the thread that calls `run`.

    Args:
        launch: Starts a server.
        on_event: Called with what happens.
        patience: When to give up.

    Attributes:
        ready: Set while a server answers.
        starts: Servers started so far.
    """

    def __init__(
        self,
        launch: Callable[[], Process],
        on_event: Callable[[ServerEvent], None],
        patience: Patience | None = None,
    ) -> None:
        self.ready = threading.Event()
        self.starts = 0
        self._launch = launch
        self._on_event = on_event
        self._patience = patience or Patience()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let `run` stop the server and return."""
        self._stop.set()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            ServerError: the first server did not start, or replacing it did not help.
        """
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            fault = self._serve()
            if fault is None:
                break
            failures = 1 if time.monotonic() - began > GOOD_HEALTH_SECONDS else failures + 1
            if self.starts == 1 and fault.at_start:
                raise ServerError(fault.what)
            self._on_event(ServerEvent("lost", fault.what))
            if failures > self._patience.max_failures:
                raise ServerError("the server could not be kept alive", seen=fault.what)
            self._stop.wait(self._patience.first_pause * 2 ** (failures - 1))
        self._on_event(ServerEvent("stopped"))

    def _serve(self) -> _Fault | None:
        """Run one server to its end; None when it was stopped."""
        self.starts += 1
        try:
            process = self._launch()
        except (OSError, ServerError) as error:
            return _Fault(str(error), at_start=True)
        try:
            process.wait_ready(self._stop)
            return self._watch(process)
        except CrashedError as error:
            return _Fault(str(error), at_start=False)
        except ServerError as error:
            return _Fault(str(error), at_start=True)
        finally:
            self.ready.clear()
            if self._stop.is_set():
                process.stop()
            else:
                process.kill()

    def _watch(self, process: Process) -> _Fault | None:
        if not self._stop.is_set():
            self.ready.set()
            self._on_event(ServerEvent("ready"))
        while not self._stop.wait(WATCH_SECONDS):
            what = process.fault()
            if what is not None:
                return _Fault(what, at_start=False)
        return None


@dataclass(frozen=True, slots=True)
class _Fault:
    what: str
    at_start: bool
