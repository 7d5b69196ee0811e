"""A server of an environment that names a proxy, which nobody reaches."""

from __future__ import annotations

import http.client
import socket
from contextlib import closing
from pathlib import Path

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.host.server import TritonServer

from .conftest import FREE_PORTS


def test_no_proxy_comes_between_the_parts_of_a_server(proxy: socket.socket, engine_dir: Path) -> None:
    """It becomes ready, lives, and answers by gRPC and through the gateway."""
    with TritonServer(engine_dir, ports=FREE_PORTS) as server:
        with NvlmClient(server.grpc_url, idle_timeout=120) as client:
            assert client.generate("Hello", options=Options(max_tokens=4)).num_output_tokens > 0
        with closing(http.client.HTTPConnection(server.http_url, timeout=120)) as connection:
            connection.request("GET", "/health/deep")
            assert connection.getresponse().status == 200
        assert server.restarts == 0
