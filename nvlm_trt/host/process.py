"""One run of tritonserver: start, readiness, signs of life, end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.errors import ServerError
from nvlm_trt.host import launch
from nvlm_trt.host.command import ADMIN_HEADER, ServerOptions, server_command
from nvlm_trt.host.condition import SERVER, Condition
from nvlm_trt.host.environment import Installation
from nvlm_trt.host.log import LogFile
from nvlm_trt.host.pulse import Pulse
from nvlm_trt.host.selftest import echo_works, is_ready, load_model, loaded_models, unload_model
from nvlm_trt.host.shm import new_prefix, remove_regions
from nvlm_trt.host.supervisor import CrashedError, Fault
from nvlm_trt.logs import fields
from nvlm_trt.loopback import LOOPBACK
from nvlm_trt.serving.decode_client import GRPC_ADDRESS
from nvlm_trt.serving.heartbeat import HEARTBEAT_DIR, read_beats

SETTLE_SECONDS: Final = 0.1
"""From the end of taking requests at the gateway to that at the models: what it has sent arrives meanwhile."""

EXIT_SECONDS: Final = 2.0
"""From a broken connection to the exit status: the kernel closes the one before it has the other."""

CALLED: Final = ("nvlm", "ensemble")
"""The models that clients call: once they are unloaded, new calls are refused and those under way go on."""

log = logging.getLogger(__name__)


class TritonProcess:
    """A running tritonserver with its model processes, on the gpu target with the ranks under mpirun.

    Args:
        triton: The installed server.
        options: How it runs.
        runtime_dir: A directory of this run's own, for the log, the backend and heartbeats.
    """

    def __init__(self, triton: Installation, options: ServerOptions, runtime_dir: Path) -> None:
        self._options = options
        self._beats = runtime_dir / "heartbeats"
        self._prefix = new_prefix()
        self._admin_key = secrets.token_hex(16)
        self._children: list[psutil.Process] = []  # ranks, model instances, the guard of launch.py
        self._pulse: Pulse | None = None
        self._condition: Condition | None = None  # from readiness on
        self._log = LogFile(runtime_dir / "server.log")
        self._is_blind = False  # the last look at the server failed
        self._beats.mkdir(parents=True)
        serving = server_command(
            triton,
            options,
            backends=triton.prepare_backends(runtime_dir / "backends"),
            shm_prefix=self._prefix,
            admin_key=self._admin_key,
        )
        self._url = f"{LOOPBACK}:{options.ports.http}"
        own = LOOPBACK if options.host in ("0.0.0.0", "") else options.host
        self._grpc = f"{own}:{options.ports.grpc}"
        environment = triton.environment({HEARTBEAT_DIR: str(self._beats), GRPC_ADDRESS: self._grpc})
        niceness = str(options.niceness)
        command = [sys.executable, "-I", launch.__file__, niceness, str(os.getpid()), *serving]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=options.repository.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of tritonserver, of mpirun where there are several ranks."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """What it and its models write; long ago is a hole."""
        return self._log.path

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until every model is loaded and tensors cross the Python backend unharmed, or until `stop` is set.

        Raises:
            ServerError: the server ended, was too slow, or the self-test failed; with the log's own words.
        """
        deadline = time.monotonic() + self._options.start_timeout
        url = self._url
        if not self._wait(lambda: is_ready(url), stop, deadline):
            return
        for model in self._options.load_order:
            # A call returns when the model is loaded, or when the server ends: nobody waits for its thread.
            loader = ThreadPoolExecutor(1, "nvlm-load")
            loading = loader.submit(load_model, url, model, {ADMIN_HEADER: self._admin_key})
            loader.shutdown(wait=False)
            if not self._wait(loading.done, stop, deadline):
                return
            try:
                loading.result()
            except ServerError as error:
                raise self._failure(str(error)) from None
        if not echo_works(url):
            raise self._failure("tensors do not cross the Python backend unharmed", "check that numpy is 1.26; ")
        server = psutil.Process(self.pid)
        self._children = server.children(recursive=self._options.world_size > 1)
        self._pulse = Pulse(url, self._grpc)
        self._condition = Condition(
            server,
            self._children,
            beats=self._beats,
            pulse=self._pulse,
            hang_timeout=self._options.hang_timeout,
            shm_prefix=self._prefix,
            max_growth=self._options.max_growth,
        )

    def fault(self) -> Fault | None:
        """What is wrong with the running server; None while it is well."""
        code = self._process.poll()
        if code is not None:
            return Fault("dead", f"{SERVER} ended {_how(code)}")
        self._log.trim()
        try:
            fault = None if self._condition is None else self._condition.fault()
        except (OSError, psutil.Error) as error:  # too many open files, say: such a look tells nothing about the server
            if not self._is_blind:
                log.warning("the server cannot be watched", extra=fields(error=str(error)))
            self._is_blind = True
            return None
        self._is_blind = False
        return fault

    def models(self) -> dict[str, int]:
        """Process ids by name: of tritonserver, and of the models that gave a sign of life."""
        return {SERVER: self.pid, **{beat.model: beat.pid for beat in read_beats(self._beats)}}

    def active_requests(self) -> int:
        """Requests that the models are working on, as of their last heartbeats; a request counts in each model."""
        return sum(beat.active for beat in read_beats(self._beats))

    def stop(self, hurry: threading.Event) -> None:
        """Take no more requests, let those under way finish for the grace period, then `kill`.

        Args:
            hurry: Set to end at once.
        """
        deadline = time.monotonic() + self._options.grace
        if self._condition is not None and not hurry.wait(min(SETTLE_SECONDS, self._options.grace)):
            headers = {ADMIN_HEADER: self._admin_key}
            busy = [model for model in CALLED if unload_model(self._url, model, headers)]
            while busy and time.monotonic() < deadline and not hurry.wait(0.05):
                if self._process.poll() is not None or self._condition.dead(CALLED) or self._condition.is_urgent:
                    break
                busy = self._busy(busy)
        self.kill()

    def kill(self) -> None:
        """End the server and its model processes at once and remove what they left."""
        if self._pulse is not None:
            self._pulse.stop()
        for child in self._session():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(self._children, timeout=5)
        remove_regions(self._prefix)

    def _wait(self, done: Callable[[], bool], stop: threading.Event, deadline: float) -> bool:
        """Wait for a step of the start; False when `stop` is set before.

        Raises:
            ServerError: the server ended or the deadline passed.
        """
        while not done():
            if self._process.poll() is not None:
                raise self._start_failure()
            if time.monotonic() > deadline:
                raise self._error(f"{SERVER} was not ready in time")
            if stop.wait(0.1):
                return False
        return True

    def _session(self) -> list[psutil.Process]:
        """All other processes of the server's session: ranks, model processes and those that have become orphans."""
        leader = self.pid
        return [
            process for process in psutil.process_iter() if process.pid != leader and _session_of(process) == leader
        ]

    def _busy(self, models: Sequence[str]) -> list[str]:
        """Those of these models, which take no more requests, that have some under way."""
        states = loaded_models(self._url, {ADMIN_HEADER: self._admin_key}) or {}
        ended = self._condition.ended_in_order if self._condition is not None else set()
        return [model for model in models if states.get(model) != "UNAVAILABLE" and model not in ended]

    def _failure(self, what: str, fix: str = "") -> ServerError:
        """What to say of a step of the start that failed: that the server has ended, where it has."""
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return self._error(what, fix)
        return self._start_failure()

    def _error(self, what: str, fix: str = "") -> ServerError:
        return ServerError(what, seen=self._log.last_words(), fix=f"{fix}its log: {self.log}")

    def _start_failure(self) -> ServerError:
        """What to say of a server that ended while it started; one that a signal ended may do better next time."""
        code = self._process.returncode
        if code < 0:
            return CrashedError(f"{SERVER} ended {_how(code)} while starting", seen=self._log.last_words())
        return self._error(f"{SERVER} ended while starting")


def _how(code: int) -> str:
    """How a process ended, from its exit status as `subprocess` has it."""
    return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None
