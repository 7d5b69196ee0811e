"""One run of tritonserver: start, readiness, signs of life, end."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.errors import ServerError
from nvlm_trt.serving.decode_client import GRPC_ADDRESS
from nvlm_trt.serving.heartbeat import HEARTBEAT_DIR, read_beats
from nvlm_trt.serving.host import launch
from nvlm_trt.serving.host.command import ADMIN_HEADER, ServerOptions, server_command
from nvlm_trt.serving.host.environment import Installation
from nvlm_trt.serving.host.ports import LOOPBACK
from nvlm_trt.serving.host.selftest import echo_works, is_ready, load_model
from nvlm_trt.serving.host.shm import new_prefix, remove_regions
from nvlm_trt.serving.host.supervisor import CrashedError

RAISED: Final = re.compile(r"Failed to initialize Python stub: \w+: (.+?)(?:\\n|\"|$)", re.MULTILINE)
"""How the Python backend logs what a model raised when it was loaded; newlines are spelt out there."""
IDLE_SECONDS: Final = 1.0
"""A stopping server without requests for so long only waits for idle connections, and is ended."""


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
        self.log = runtime_dir / "server.log"
        self._beats.mkdir(parents=True)
        serving = server_command(
            triton,
            options,
            backends=triton.prepare_backends(runtime_dir / "backends"),
            shm_prefix=self._prefix,
            admin_key=self._admin_key,
        )
        own = LOOPBACK if options.host in ("0.0.0.0", "") else options.host
        environment = triton.environment({HEARTBEAT_DIR: str(self._beats), GRPC_ADDRESS: f"{own}:{options.ports.grpc}"})
        command = [sys.executable, "-I", launch.__file__, str(os.getpid()), *serving]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=options.repository.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of tritonserver, of mpirun where there are several ranks."""
        return self._process.pid

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until every model is loaded and tensors cross the Python backend unharmed, or until `stop` is set.

        Raises:
            ServerError: the server ended, was too slow, or the self-test failed; with the log's own words.
        """
        deadline = time.monotonic() + self._options.start_timeout
        url = f"{LOOPBACK}:{self._options.ports.http}"
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
                raise ServerError(str(error), seen=self._last_words(), fix=f"its log: {self.log}") from None
        if not echo_works(url):
            raise ServerError("tensors do not cross the Python backend unharmed", fix="check that numpy is 1.26")
        self._children = psutil.Process(self.pid).children(recursive=self._options.world_size > 1)

    def fault(self) -> str | None:
        """What is wrong with the running server, in a few words; None while it is well."""
        code = self._process.poll()
        if code is not None:
            return f"tritonserver ended with code {code}"
        for child in self._children:
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                return f"model process {child.pid} ended"
        now = time.monotonic()
        for beat in read_beats(self._beats):
            if now - beat.at > self._options.hang_timeout:
                return f"model {beat.model} hangs (process {beat.pid})"
        return None

    def models(self) -> dict[str, int]:
        """Process ids by name: of tritonserver, and of the models that gave a sign of life."""
        return {"tritonserver": self.pid, **{beat.model: beat.pid for beat in read_beats(self._beats)}}

    def active_requests(self) -> int:
        """Requests that the models are working on, as of their last heartbeats; a request counts in each model."""
        return sum(beat.active for beat in read_beats(self._beats))

    def stop(self) -> None:
        """Let requests under way finish for the grace period, then end everything and remove what it left."""
        if self._process.poll() is None:
            # Not to mpirun, which would end all ranks at once, requests under way included.
            with contextlib.suppress(psutil.NoSuchProcess):
                self._server().send_signal(signal.SIGTERM)
            self._wait_stopped()
        self.kill()

    def kill(self) -> None:
        """End the server and its model processes at once and remove what they left."""
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
                raise ServerError(
                    "tritonserver was not ready in time", seen=self._last_words(), fix=f"its log: {self.log}"
                )
            if stop.wait(0.1):
                return False
        return True

    def _session(self) -> list[psutil.Process]:
        """All other processes of the server's session: ranks, model processes and those that have become orphans."""
        leader = self.pid
        return [
            process for process in psutil.process_iter() if process.pid != leader and _session_of(process) == leader
        ]

    def _server(self) -> psutil.Process:
        """The process that clients reach: rank 0, which mpirun starts first."""
        process = psutil.Process(self.pid)
        if self._options.world_size == 1:
            return process
        port = f"--http-port={self._options.ports.http}"
        return next((child for child in process.children(recursive=True) if port in child.cmdline()), process)

    def _wait_stopped(self) -> None:
        deadline = time.monotonic() + self._options.grace
        idle_since = None
        while self._process.poll() is None and time.monotonic() < deadline:
            idle_since = None if self.active_requests() else (idle_since or time.monotonic())
            if idle_since is not None and time.monotonic() - idle_since > IDLE_SECONDS:
                return
            time.sleep(0.05)

    def _start_failure(self) -> ServerError:
        """What to say of a server that ended while it started; one that a signal ended may do better next time."""
        code = self._process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            return CrashedError(f"tritonserver ended by {name} while starting", seen=self._last_words())
        return ServerError("tritonserver ended while starting", seen=self._last_words(), fix=f"its log: {self.log}")

    def _last_words(self) -> str:
        return last_words(self.log.read_bytes().decode(errors="replace"))


def last_words(text: str) -> str:
    """What a log says went wrong: what a model raised where one did, else the log's last error lines."""
    raised = RAISED.findall(text)
    if raised:
        return str(raised[-1])
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("+", "|"))]
    errors = [line for line in lines if line.startswith("E") or "error" in line.lower()]
    return " / ".join((errors or lines)[-3:])


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None
