"""Keep a server alive: watch it, replace it when it fails, give up when that does not help."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

from nvlm_trt.errors import ServerError

WATCH_SECONDS: Final = 0.25
GOOD_HEALTH_SECONDS: Final = 60.0
"""A server that was ready for so long was well; the next failure is counted as a first one."""

log = logging.getLogger(__name__)

Reason = Literal["dead", "hung", "leaking", "start"]
"""Why a server is replaced: one of its processes has ended, stands still, or takes ever more memory; or the server did
not become ready."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

State = Literal["starting", "ready", "draining", "replacing", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """What happened to the server.

    Attributes:
        kind: "ready", "draining" (it takes no more requests and finishes those under way), "lost" (it failed, its ports
            are closed, another one follows), "failed" (no more attempts) or "stopped".
        detail: What was wrong, where something was.
        reason: Why it was lost.
    """

    kind: Literal["ready", "draining", "lost", "failed", "stopped"]
    detail: str = ""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a server.

    Attributes:
        reason: Of which kind it is.
        what: In a few words.
        final: Another server would not do better.
    """

    reason: Reason
    what: str
    final: bool = False


class CrashedError(ServerError):
    """A server that crashed while it started: not its configuration's fault, so it is tried again."""


class Process(Protocol):
    """One run of the server."""

    def wait_ready(self, stop: threading.Event) -> None:
        """Return when it is ready or `stop` is set; raise ServerError when it will not be."""

    def fault(self) -> Fault | None:
        """What is wrong with it; None while it is well."""

    def stop(self, hurry: threading.Event) -> None:
        """Let requests under way finish, until `hurry` is set, then end it."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a failing server is replaced.

    Attributes:
        max_failures: Failures in a row after which it is given up.
        first_pause: Seconds before the second replacement in a row; each further one doubles it. The first has none.
    """

    max_failures: int = 5
    first_pause: float = 1.0

    def pause(self, failures: int) -> float:
        """Seconds before the replacement that follows so many failures in a row."""
        return 0.0 if failures < 2 else self.first_pause * 2.0 ** (failures - 2)


class Supervisor:
    """Runs servers one after the other, in the thread that calls `run`.

    Args:
        launch: Starts a server.
        on_event: Called with what happens.
        patience: When to give up.

    Attributes:
        ready: Set while a server answers and takes requests.
        hurry: Set to end without waiting for requests under way.
        state: What it is doing.
    """

    def __init__(
        self,
        launch: Callable[[], Process],
        on_event: Callable[[ServerEvent], None],
        patience: Patience | None = None,
    ) -> None:
        self.ready = threading.Event()
        self.hurry = threading.Event()
        self.state: State = "starting"
        self._launch = launch
        self._on_event = on_event
        self._patience = patience or Patience()
        self._stop = threading.Event()
        self._lost: dict[str, int] = dict.fromkeys(REASONS, 0)

    @property
    def lost(self) -> Mapping[str, int]:
        """How often a server was lost, by the reason."""
        return dict(self._lost)

    def stop(self) -> None:
        """Let `run` stop the server and return; it is unready from now on."""
        self._stop.set()
        self.ready.clear()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            ServerError: the first server did not start, or replacing it did not help; or this supervisor failed.
        """
        try:
            self._run()
        except ServerError:
            raise
        except Exception as error:
            log.exception("the supervisor failed")
            self._fail(ServerError("the supervisor failed", seen=repr(error), fix="the log has its traceback"))

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            fault, healthy_for = self._serve()
            if fault is None:
                break
            if fault.final and not any(self._lost.values()):
                self._fail(ServerError(fault.what))
            self._lost[fault.reason] += 1
            failures = 1 if healthy_for > GOOD_HEALTH_SECONDS else failures + 1
            self._tell("lost", "replacing", fault.what, fault.reason)
            if failures > self._patience.max_failures:
                self._fail(ServerError("the server could not be kept alive", seen=fault.what))
            self._stop.wait(self._patience.pause(failures))
        self._tell("stopped", "stopped")

    def _fail(self, error: ServerError) -> None:
        self._tell("failed", "failed", str(error))
        raise error

    def _serve(self) -> tuple[Fault | None, float]:
        """Run one server to its end: what was wrong with it, None when it was stopped; and how long it was ready."""
        try:
            process = self._launch()
        except (OSError, ServerError) as error:
            return Fault("start", str(error), final=True), 0.0
        began = ended = time.monotonic()
        drains = False
        try:
            process.wait_ready(self._stop)
            began = time.monotonic()
            fault = self._watch(process)
            ended = time.monotonic()
            drains = fault is None or fault.reason == "leaking"
        except ServerError as error:
            fault = Fault("start", str(error), final=not isinstance(error, CrashedError))
        finally:
            self.ready.clear()
            if drains:
                self._tell("draining", "draining", *((fault.what, fault.reason) if fault else ()))
                process.stop(self.hurry)
            else:
                process.kill()
        return None if self._stop.is_set() else fault, ended - began

    def _watch(self, process: Process) -> Fault | None:
        """Wait for a fault; None when the server is to stop."""
        self.ready.set()
        if self._stop.is_set():
            self.ready.clear()
        else:
            self._tell("ready", "ready")
        while not self._stop.wait(WATCH_SECONDS):
            fault = process.fault()
            if fault is not None:
                return fault
        return None

    def _tell(
        self,
        kind: Literal["ready", "draining", "lost", "failed", "stopped"],
        state: State,
        detail: str = "",
        reason: Reason | None = None,
    ) -> None:
        self.state = state
        try:
            self._on_event(ServerEvent(kind, detail, reason))
        except Exception:  # a listener's mistake is not the server's
            log.exception("an event was not heard")
