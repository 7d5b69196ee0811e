"""A gateway on a port of its own, in front of whatever a test puts there."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import urllib3

from nvlm_trt.gateway.app import Served
from nvlm_trt.gateway.fetch import Fetcher
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Limits, Upstream


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Door:
    """A gateway and a client of it; a context manager."""

    def __init__(
        self,
        limits: Limits,
        *,
        http: int = 1,
        grpc: int = 1,
        api_keys: tuple[str, ...] = (),
        fetcher: Fetcher | None = None,
        grace: float = 0.2,
        port: int | None = None,
        engine_dir: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.ready = True
        upstream = Upstream(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{http}")
        served = Served(upstream, ("mini", "nvlm"), lambda: self.ready, engine_dir=engine_dir)
        settings = GatewaySettings(limits, api_keys)
        self.gateway = Gateway("127.0.0.1", self.port, served, settings, grace=grace, fetcher=fetcher)
        self.pool = urllib3.PoolManager(retries=False, maxsize=64)

    def call(
        self, path: str, body: object = None, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Call a path: GET without a body, POST with one."""
        method = method or ("GET" if body is None else "POST")
        url = f"http://127.0.0.1:{self.port}{path}"
        return self.pool.request(method, url, body=body, headers=headers)  # type: ignore[arg-type]

    def connect(self) -> socket.socket:
        """A connection on which nothing was said."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def metric(self, line: str) -> float:
        """The value of a metric, by the text of its line."""
        for found in self.call("/metrics").data.decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def __enter__(self) -> Door:
        self.gateway.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.clear()
        self.gateway.stop()


def say(door: Door, *pieces: bytes) -> bytes:
    """What a raw connection is answered, until it is closed."""
    with door.connect() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # it was refused in the middle
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer
