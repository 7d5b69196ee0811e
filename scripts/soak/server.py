"""The server that is soaked: one of our own, or one that runs already on this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from nvlm_trt.errors import RequestError, ServerError

STOP_SECONDS = 60
PATIENT = ("--limit=queue_time=60",)
"""Where others use the machine, it may be slower for a while than when its capacity was measured; a refusal then is not
the server's fault."""
START = "import sys; from nvlm_trt.cli.main import main; sys.exit(main())"


@dataclass(frozen=True, slots=True)
class Running:
    """A server.

    Attributes:
        http: ``host:port`` of its gateway.
        grpc: ``host:port`` of its gRPC.
        pid: Process of ``nvlm-trt serve``.
    """

    http: str
    grpc: str
    pid: int


@contextlib.contextmanager
def own_server(engine_dir: Path, log: Path) -> Iterator[Running]:
    """Start ``nvlm-trt serve`` on free ports, and stop it at the end.

    Args:
        engine_dir: What it serves.
        log: Where its words go.

    Raises:
        ServerError: it does not get ready.
    """
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    command = [sys.executable, "-c", START, "serve", str(engine_dir), *ports, *PATIENT, "--json"]
    with log.open("w") as words, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True) as process:
        assert process.stdout is not None
        try:
            event = json.loads(process.stdout.readline() or "{}")
            if event.get("event") != "ready":
                raise ServerError("the server did not get ready", seen=event, fix=f"see {log}")
            yield Running(event["http"], event["grpc"], process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()


@contextlib.contextmanager
def found_server(http: str, grpc: str) -> Iterator[Running]:
    """A server that runs already; its processes are watched, so it has to be on this machine.

    Raises:
        RequestError: no process of this user listens there.
    """
    port = int(http.rpartition(":")[2])
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    yield Running(http, grpc, process.pid)
                    return
    raise RequestError("no process on this machine listens there", seen=http, fix="start nvlm-trt serve here")
