"""Pages of a server, where the environment names a proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nvlm_trt.errors import ServerError
from nvlm_trt.top.source import metrics_url, read_page

from ..proxy import Refusing


class Metrics(BaseHTTPRequestHandler):
    """Shows one number."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"some_total 5\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def shown() -> Iterator[int]:
    """The port of a server of this machine."""
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "http://localhost:{}"])
def test_this_machine_is_read_without_the_proxy(proxy: socket.socket, shown: int, address: str) -> None:
    assert [*read_page(metrics_url(address.format(shown))).values.values()] == [5.0]


def test_another_machine_is_read_through_it(proxy: socket.socket) -> None:
    refusing = Refusing(proxy)
    with pytest.raises(ServerError, match="status 403"):
        read_page(metrics_url("server.invalid:8000"))
    assert refusing.asked() == "GET http://server.invalid:8000/metrics HTTP/1.1"
