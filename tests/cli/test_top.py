"""`nvlm-trt top` against pages of metrics, good and bad, and against nothing."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from nvlm_trt.top.figures import Figures
from nvlm_trt.top.view import page
from nvlm_trt.top.window import Scrape, Window

Run = Callable[..., Any]

PAGE = """\
# TYPE nvlm_server_ready gauge
nvlm_server_ready 1.0
# TYPE nvlm_build_info gauge
nvlm_build_info{{engine="mini",version="1"}} 1.0
# TYPE nvlm_requests_total counter
nvlm_requests_total{{route="chat",status="200"}} {done}
# TYPE nvlm_refused_total counter
nvlm_refused_total{{reason="overloaded"}} {done}
# TYPE nvlm_server_restarts_total counter
nvlm_server_restarts_total{{reason="dead"}} 2.0
nvlm_server_restarts_total{{reason="hung"}} 0.0
# TYPE nvlm_first_token_seconds histogram
nvlm_first_token_seconds_bucket{{le="0.1"}} 0
nvlm_first_token_seconds_bucket{{le="0.2"}} {done}
nvlm_first_token_seconds_bucket{{le="+Inf"}} {done}
# TYPE nvlm_kv_blocks gauge
nvlm_kv_blocks 100
# TYPE nvlm_kv_free_blocks gauge
nvlm_kv_free_blocks 75
# TYPE nvlm_decoder_tokens_total counter
nvlm_decoder_tokens_total {tokens}
# TYPE nvlm_decoder_steps_total counter
nvlm_decoder_steps_total {done}
# TYPE nvlm_process_resident_memory_bytes gauge
nvlm_process_resident_memory_bytes{{process="tensorrt_llm"}} 1048576
"""


class Server:
    """Shows a page that grows with each look."""

    def __init__(self) -> None:
        self.looks = 0
        self.text: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.looks += 1
                text = server.text
                if text is None:
                    text = PAGE.format(done=10 * server.looks, tokens=40 * server.looks)
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_once_looks_twice_and_says_what_happened_between(nvlm_trt: Run, server: Server) -> None:
    shown = nvlm_trt("top", server.address, "--once", "--interval", "0.2", "--json")
    assert shown.code == 0
    facts = shown.json
    assert (facts["engine"], facts["ready"], facts["trouble"]) == ("mini", True, None)
    assert facts["requests"]["200"] == pytest.approx(10 / facts["window"])
    assert facts["batch"] == pytest.approx(4.0)
    assert facts["first_token"] == pytest.approx([0.15, 0.199])
    assert facts["between_tokens"] == [None, None]
    assert (facts["kv_used"], facts["kv_blocks"]) == (0.25, 100)
    assert facts["refused"].keys() == {"overloaded"}
    assert facts["restarts"] == {"dead": 2.0}
    assert facts["memory"] == {"tensorrt_llm": 1048576}


def test_people_read_the_same(nvlm_trt: Run, server: Server) -> None:
    shown = nvlm_trt("top", f"http://{server.address}/", "--once", "--interval", "0.1")
    for words in ("mini", "ready", "first token, p50", "150.0 ms", "25%", "dead: 2", "overloaded/s", "1 MiB"):
        assert words in shown.out


def test_a_server_that_is_not_there_is_an_error_once(nvlm_trt: Run) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        shown = nvlm_trt("top", address, "--once")
    assert shown.code == 1
    assert f"the server cannot be reached; seen: http://{address}/metrics: " in shown.err
    assert "start it with nvlm-trt serve" in shown.err


@pytest.mark.parametrize("address", ["ftp://a", "a:b", "http://", ""])
def test_what_is_no_address_is_the_users_mistake(nvlm_trt: Run, address: str) -> None:
    shown = nvlm_trt("top", address, "--once")
    assert shown.code == 2
    assert "this is no address of a server" in shown.err


def test_what_is_no_page_of_metrics_is_an_error(nvlm_trt: Run, server: Server) -> None:
    server.text = "<html>\n{"
    shown = nvlm_trt("top", server.address, "--once")
    assert shown.code == 1
    assert f"no metrics; seen: http://{server.address}/metrics; give the HOST:PORT of HTTP" in shown.err
    assert nvlm_trt("top", f"http://{server.address}/else", "--once").code == 1


def test_a_server_that_comes_back_is_read_on() -> None:
    """Nobody, then a server: two lines of trouble at least, then figures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "top", f"127.0.0.1:{port}", "--json", "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            lost = json.loads(watching.stdout.readline())
            assert "cannot be reached" in lost["trouble"]
            server = ThreadingHTTPServer(("127.0.0.1", port), _Plain)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            deadline = time.monotonic() + 20
            while json.loads(watching.stdout.readline())["trouble"]:
                assert time.monotonic() < deadline
            server.shutdown()
            server.server_close()
            while not (again := json.loads(watching.stdout.readline()))["trouble"]:
                assert time.monotonic() < deadline
            assert again["engine"] == "mini", "what is known is kept"
        finally:
            watching.terminate()


class _Plain(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = PAGE.format(done=1, tokens=1).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def test_tritonservers_own_page_leaves_out_what_it_does_not_show() -> None:
    window = Window(10)
    for at in (0.0, 1.0):
        window.add(Scrape.read("# TYPE nvlm_kv_blocks gauge\nnvlm_kv_blocks 4\n", at))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(page("x", Figures.of(window)))
    text = console.export_text()
    assert "KV blocks" in text
    assert "ready" not in text
