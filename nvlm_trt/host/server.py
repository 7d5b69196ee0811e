"""A served engine directory: tritonserver, started, watched and replaced when a model process dies or hangs.

Clients reach HTTP through the gateway; gRPC, which has none of HTTP's faults, they reach directly.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from nvlm_trt.client.request import MODEL
from nvlm_trt.errors import ServerError
from nvlm_trt.gateway.app import Served
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Limits, Upstream
from nvlm_trt.host.command import require_launcher
from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.host.environment import Installation, find_installation
from nvlm_trt.host.nodes import Nodes
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.process import TritonProcess
from nvlm_trt.host.runtime import new_runtime_dir, remove_stale_runtime_dirs
from nvlm_trt.host.shm import remove_stale_regions
from nvlm_trt.host.supervisor import ServerEvent, State, Supervisor
from nvlm_trt.loopback import LOOPBACK


class TritonServer:
    """Serves an engine directory; a context manager.

    Args:
        engine_dir: What a build left, with its model repository.
        host: Address to listen on.
        ports: Ports; 0 takes a free one. They stay the same when the server is replaced.
        on_event: Called, from a thread of the server's own, with what happens.
        nodes: Where the ranks of a gpu engine run.
        with_gateway: Whether HTTP goes through the gateway; otherwise it is tritonserver's own, on loopback.
        gateway: How the gateway treats its clients; None for the limits of the engine's recipe. Where it asks for API
            keys, gRPC and metrics are on loopback, since they would let everybody past it.
        installation: The tritonserver to run; None for the one that serves the engine's target.
        start_timeout: Seconds until the server must be ready; None for the target's own.
        hang_timeout: Seconds without a sign of life, or without progress, after which a process is hung.
        grace: Seconds that requests under way have to finish when the server stops, or is replaced because it leaks.
        max_growth: Bytes by which a process may grow once the server is ready, before it counts as leaking; None for
            three quarters of the memory that is at hand then.

    Raises:
        EngineError: the directory is not complete, or tritonserver cannot run in this environment.
    """

    def __init__(
        self,
        engine_dir: Path,
        *,
        host: str = LOOPBACK,
        ports: Ports | None = None,
        on_event: Callable[[ServerEvent], None] | None = None,
        nodes: Nodes | None = None,
        with_gateway: bool = True,
        gateway: GatewaySettings | None = None,
        installation: Installation | None = None,
        start_timeout: float | None = None,
        hang_timeout: float = 8.0,
        grace: float = 15.0,
        max_growth: int | None = None,
    ) -> None:
        engine = ServedEngine.open(engine_dir)
        engine.check_engines()
        self._engine_dir = engine.directory
        self._triton = installation or find_installation(engine.recipe.target)
        self._ports = ports or Ports()
        self._with_gateway = with_gateway
        self._settings = gateway or GatewaySettings(Limits.of(engine.recipe))
        self._host = host
        self._options = engine.options(
            self._settings.inner_host(host) if with_gateway else host,
            self._ports,
            nodes or Nodes(),
            start_timeout=start_timeout,
            hang_timeout=hang_timeout,
            grace=grace,
            max_growth=max_growth,
            max_body=self._settings.limits.max_body if with_gateway else None,
        )
        require_launcher(self._options)
        self._names = tuple(dict.fromkeys((engine.recipe.name, MODEL)))
        self._held = contextlib.ExitStack()
        self._gateway: Gateway | None = None
        self._supervisor = Supervisor(self._launch, on_event or _ignore)
        self._runs = itertools.count(1)
        self._runtime: Path | None = None
        self._process: TritonProcess | None = None
        self._error: ServerError | None = None
        self._asked = False
        # tritonserver is a child of this thread: the kernel kills it if the thread, or the whole process, is gone.
        self._thread = threading.Thread(target=self._run, name="nvlm-supervisor", daemon=True)

    @property
    def ports(self) -> Ports:
        """The ports that clients use."""
        return self._ports

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP."""
        return f"{self._host if self._with_gateway else LOOPBACK}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC."""
        return f"{self._options.host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """``host:port`` of metrics."""
        return f"{self._options.host}:{self.ports.metrics}"

    @property
    def restarts(self) -> int:
        """How often the server was lost, and replaced."""
        return sum(self._supervisor.lost.values())

    @property
    def restarts_by_reason(self) -> Mapping[str, int]:
        """The same by what was wrong; every reason is there from the beginning."""
        return self._supervisor.lost

    @property
    def state(self) -> State:
        """What the server is doing."""
        return self._supervisor.state

    @property
    def log(self) -> Path | None:
        """What the server that runs now, and its models, write; None before the first one was started."""
        return self._process.log if self._process is not None else None

    @property
    def process(self) -> TritonProcess:
        """The server that runs now.

        Raises:
            ServerError: none was started.
        """
        if self._process is None:
            raise ServerError("the server does not run")
        return self._process

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            BusyError: a port is in use.
            ServerError: the server did not start.
        """
        remove_stale_regions()
        remove_stale_runtime_dirs()
        self._ports = self._hold(self._ports, self._host)
        self._options = replace(self._options, ports=self._ports)
        self._runtime = new_runtime_dir()
        if self._with_gateway:
            inner = replace(self._ports, http=self._hold(Ports(0, 0, 0), LOOPBACK).http)
            self._options = replace(self._options, ports=inner)
            self._gateway = self._new_gateway(inner)
            self._gateway.start()
        self._thread.start()
        while not self._supervisor.ready.wait(0.05) and self._thread.is_alive():
            continue
        if self._error is not None:
            raise self._error

    def ask_to_stop(self) -> None:
        """Begin to stop without waiting: no more requests are taken from now on. Then call `stop`.

        Asked again, the server ends without waiting for requests under way. For any thread, but for no signal handler:
        one that interrupts the thread that waits here waits for it.
        """
        if self._asked:
            self._supervisor.hurry.set()
        self._asked = True
        self._supervisor.stop()

    def stop(self) -> None:
        """Stop the server: requests under way have the grace period to finish. May be called twice."""
        self._asked = True
        self._supervisor.stop()
        if self._gateway is not None:
            self._gateway.drain(self._supervisor.hurry)
        if self._thread.ident is not None:
            self._thread.join()
        if self._gateway is not None:
            self._gateway.stop()
        self._held.close()
        if self._runtime is not None and self._error is None:  # a log that says why is kept
            shutil.rmtree(self._runtime, ignore_errors=True)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server has ended for good.

        Returns:
            Whether it has.

        Raises:
            ServerError: it ended because it could not be kept alive.
        """
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether the server answers now."""
        return self._supervisor.ready.is_set()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until the server answers, after a replacement too; False if it does not in `timeout` seconds."""
        return self._supervisor.ready.wait(timeout)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _hold(self, ports: Ports, host: str) -> Ports:
        """Keep ports from everybody else until the server is stopped."""
        held = ports.held(host)
        self._held.callback(held.release)
        return held.ports

    def _new_gateway(self, inner: Ports) -> Gateway:
        own = LOOPBACK if self._options.host in ("0.0.0.0", "") else self._options.host
        upstream = Upstream(f"{LOOPBACK}:{inner.http}", f"{own}:{inner.grpc}", f"{own}:{inner.metrics}")
        served = Served(
            upstream,
            self._names,
            self._supervisor.ready.is_set,
            lambda: self.restarts_by_reason,
            self._engine_dir,
            self._processes,
            lambda: self._asked,
            lambda: self._supervisor.state,
        )
        return Gateway(self._host, self._ports.http, served, self._settings, grace=self._options.grace)

    def _processes(self) -> dict[str, int]:
        """Ids of the processes that serve, by name: this one, tritonserver, and the models."""
        models = self._process.models() if self._process is not None else {}
        return {"serve": os.getpid(), **models}

    def _launch(self) -> TritonProcess:
        if self._runtime is None:
            raise ServerError("the server was not started")
        if not self._runtime.is_dir():  # somebody emptied the machine's directory of temporary files
            self._runtime = new_runtime_dir()
        run = next(self._runs)
        shutil.rmtree(self._runtime / f"run-{run - 2}", ignore_errors=True)  # of the last one the log may be wanted
        self._process = TritonProcess(self._triton, self._options, self._runtime / f"run-{run}")
        return self._process

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except ServerError as error:
            self._error = error


def _ignore(event: ServerEvent) -> None:
    """Take no notice."""
