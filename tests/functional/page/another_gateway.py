"""A gateway with settings of its own, before the shared server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nvlm_trt.gateway.app import Served
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Upstream
from nvlm_trt.host.server import TritonServer

KEY: Final = "a-key-of-the-tests-of-the-page"


@contextlib.contextmanager
def another_gateway(server: TritonServer, engine_dir: Path, settings: GatewaySettings) -> Iterator[str]:
    """The address of a gateway with other settings, before the same server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    upstream = Upstream("127.0.0.1:1", server.grpc_url, server.metrics_url)
    served = Served(upstream, ("nvlm",), lambda: True, engine_dir=engine_dir)
    gateway = Gateway("127.0.0.1", port, served, settings, grace=1)
    gateway.start()
    yield f"127.0.0.1:{port}"
    gateway.stop()
