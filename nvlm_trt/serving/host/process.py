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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.errors import ServerError
from nvlm_trt.serving.decode_client import GRPC_ADDRESS
from nvlm_trt.serving.heartbeat import HEARTBEAT_DIR, read_beats
from nvlm_trt.serving.host import launch
from nvlm_trt.serving.host.environment import Triton
from nvlm_trt.serving.host.ports import LOOPBACK, Ports
from nvlm_trt.serving.host.selftest import echo_works, is_ready
from nvlm_trt.serving.host.shm import new_prefix, remove_regions
from nvlm_trt.serving.host.supervisor import CrashedError

RESTRICTED_APIS: Final = "model-repository,shared-memory,logging,trace"
RAISED: Final = re.compile(r"Failed to initialize Python stub: \w+: (.+?)(?:\\n|\"|$)", re.MULTILINE)
"""How the Python backend logs what a model raised when it was loaded; newlines are spelt out there."""
IDLE_SECONDS: Final = 1.0
"""A stopping server without requests for so long only waits for idle connections, and is ended."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server runs; times in seconds.

    Attributes:
        repository: The model repository.
        host: Address of gRPC and metrics; HTTP is on loopback, for the gateway. Not hardened: another than loopback
            needs a proxy in front.
        ports: Its ports, none of them 0.
        start_timeout: From the start to readiness.
        hang_timeout: A model process without a heartbeat for so long is hung.
        grace: From the request to stop to the end by force; requests under way may finish meanwhile.
    """

    repository: Path
    host: str
    ports: Ports
    start_timeout: float = 180.0
    hang_timeout: float = 15.0
    grace: float = 15.0


class TritonProcess:
    """A running tritonserver with its model processes.

    Args:
        triton: The installed server.
        options: How it runs.
        runtime_dir: A directory of this run's own, for the log, the backend and heartbeats.
    """

    def __init__(self, triton: Triton, options: ServerOptions, runtime_dir: Path) -> None:
        self._options = options
        self._beats = runtime_dir / "heartbeats"
        self._prefix = new_prefix()
        self._children: list[psutil.Process] = []  # one for each model instance, and the guard of launch.py
        self.log = runtime_dir / "server.log"
        backends = runtime_dir / "backends"
        self._beats.mkdir(parents=True)
        triton.prepare_backends(backends)
        own = LOOPBACK if options.host in ("0.0.0.0", "") else options.host
        environment = triton.environment({HEARTBEAT_DIR: str(self._beats), GRPC_ADDRESS: f"{own}:{options.ports.grpc}"})
        command = [sys.executable, "-I", launch.__file__, str(os.getpid()), str(triton.binary), *self._flags(backends)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until every model is loaded and tensors cross the Python backend unharmed, or until `stop` is set.

        Raises:
            ServerError: the server ended, was too slow, or the self-test failed; with the log's own words.
        """
        deadline = time.monotonic() + self._options.start_timeout
        url = f"{LOOPBACK}:{self._options.ports.http}"
        while not is_ready(url):
            if self._process.poll() is not None:
                raise self._start_failure()
            if time.monotonic() > deadline:
                raise ServerError(
                    "tritonserver was not ready in time", seen=self._last_words(), fix=f"its log: {self.log}"
                )
            if stop.wait(0.1):
                return
        if not echo_works(url):
            raise ServerError("tensors do not cross the Python backend unharmed", fix="check that numpy is 1.26")
        self._children = psutil.Process(self.pid).children()

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

    def active_requests(self) -> int:
        """Requests that the models are working on, as of their last heartbeats; a request counts in each model."""
        return sum(beat.active for beat in read_beats(self._beats))

    def stop(self) -> None:
        """Let requests under way finish for the grace period, then end everything and remove what it left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._wait_stopped()
        self.kill()

    def kill(self) -> None:
        """End the server and its model processes at once and remove what they left."""
        for child in self._group():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(self._children, timeout=5)
        remove_regions(self._prefix)

    def _group(self) -> list[psutil.Process]:
        """Model processes, those included that have become orphans of the server's group."""
        group = self.pid
        return [process for process in psutil.process_iter() if process.pid != group and _group_of(process) == group]

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

    def _flags(self, backends: Path) -> list[str]:
        options = self._options
        key = secrets.token_hex(16)
        restricted = f"{RESTRICTED_APIS}:nvlm-admin={key}"
        return [
            f"--model-repository={options.repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--model-control-mode=none",
            "--strict-readiness=true",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={max(1, int(options.grace))}",
            f"--http-address={LOOPBACK}",
            f"--http-port={options.ports.http}",
            f"--http-restricted-api={restricted}",
            f"--grpc-address={options.host}",
            f"--grpc-port={options.ports.grpc}",
            f"--grpc-restricted-protocol={restricted}",
            f"--metrics-address={options.host}",
            f"--metrics-port={options.ports.metrics}",
        ]


def last_words(text: str) -> str:
    """What a log says went wrong: what a model raised where one did, else the log's last error lines."""
    raised = RAISED.findall(text)
    if raised:
        return str(raised[-1])
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("+", "|"))]
    errors = [line for line in lines if line.startswith("E") or "error" in line.lower()]
    return " / ".join((errors or lines)[-3:])


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None
