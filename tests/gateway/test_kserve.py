"""The HTTP door: limits before anything is read, answers passed through, clear words while the server is away."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator

import pytest
import urllib3
from aiohttp import web

from nvlm_trt.errors import BusyError
from nvlm_trt.gateway.app import Served
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.gateway.settings import Upstream as Addresses

LIMIT = 10_000


class Upstream:
    """A plain HTTP server that says what reached it; a stream of it can be cut off."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.hung_up = threading.Event()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, body, request.headers.get("Content-Type", "")))
        if b"error" in body:
            sentence = json.loads(body)["text_input"]
            return web.json_response({"error": sentence}, status=400)
        if not request.path.endswith("generate_stream"):
            return web.Response(status=202, body=body, headers={"X-Upstream": "yes"})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await asyncio.sleep(0 if b"short" in body else 30)
        except asyncio.CancelledError:
            self.hung_up.set()
            raise
        await response.write(b"data: 2\n\n")
        if b"cut" in body:
            assert request.transport is not None
            request.transport.abort()
        return response


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Door:
    """A gateway and a client of it."""

    def __init__(self, upstream_port: int) -> None:
        self.port = free_port()
        self.ready = True
        address = f"127.0.0.1:{upstream_port}"
        served = Served(Addresses(address, address, address), ("nvlm",), lambda: self.ready)
        settings = GatewaySettings(Limits(max_body=LIMIT))
        self.gateway = Gateway("127.0.0.1", self.port, served, settings, grace=0.2)
        self.gateway.start()
        self.pool = urllib3.PoolManager(retries=False)

    def call(self, path: str, body: object = None, method: str = "POST", **headers: str) -> urllib3.BaseHTTPResponse:
        return self.pool.request(method, f"http://127.0.0.1:{self.port}{path}", body=body, headers=headers)  # type: ignore[arg-type]

    def close(self) -> None:
        self.pool.clear()
        self.gateway.stop()


@pytest.fixture
def door(upstream: Upstream) -> Iterator[Door]:
    one = Door(upstream.port)
    yield one
    one.close()


GENERATE = "/v2/models/nvlm/generate"


def test_a_request_and_its_answer_pass_unchanged(door: Door, upstream: Upstream) -> None:
    answer = door.call("/v2/models/nvlm/infer?a=%20b", b"\x00\x01", **{"Content-Type": "application/octet-stream"})
    assert (answer.status, answer.data, answer.headers["X-Upstream"]) == (202, b"\x00\x01", "yes")
    method, path, body, _ = upstream.seen[0]
    assert (method, path, body) == ("POST", "/v2/models/nvlm/infer?a=%20b", b"\x00\x01")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_generate_call_reaches_the_server_as_json_whatever_it_says(door: Door, upstream: Upstream, kind: str) -> None:
    door.call(GENERATE, b'{"text_input": "a"}', **({"Content-Type": kind} if kind else {}))
    assert upstream.seen[0][3] == "application/json"


def test_a_form_never_reaches_the_server(door: Door, upstream: Upstream) -> None:
    door.call("/v2/models/nvlm/infer", b"a=b", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert upstream.seen[0][3] == "application/octet-stream"


def test_a_mistake_in_a_generate_call_is_400_and_never_reaches_the_server(door: Door, upstream: Upstream) -> None:
    for path in (GENERATE, "/v2/models/nvlm/versions/1/generate", GENERATE + "_stream"):
        answer = door.call(path, b'{"max_tokens": "many"}')
        assert answer.status == 400
        assert "max_tokens is not a whole number" in answer.json()["error"]
    assert upstream.seen == []


def test_a_body_over_the_limit_is_413_by_its_length_in_chunks_and_compressed(door: Door, upstream: Upstream) -> None:
    large = b"a" * (LIMIT + 1)
    assert door.call(GENERATE, large).status == 413
    assert door.call(GENERATE, iter([large[:9000], large[9000:]])).status == 413
    packed = gzip.compress(large * 50)
    assert len(packed) < LIMIT
    assert door.call(GENERATE, packed, **{"Content-Encoding": "gzip"}).status == 413
    assert upstream.seen == []


def test_a_compressed_body_is_unpacked(door: Door, upstream: Upstream) -> None:
    body = json.dumps({"text_input": "a"}).encode()
    assert door.call(GENERATE, gzip.compress(body), **{"Content-Encoding": "gzip"}).data == body


@pytest.mark.parametrize(
    ("sentence", "status"),
    [
        ("a client's error; seen: 3", 400),
        ("unavailable: an error for now; try again later", 503),
        ("internal error: the server failed on this request", 500),
        ("in ensemble 'ensemble', internal error: a model failed", 500),
    ],
)
def test_an_error_of_a_model_gets_the_status_that_it_deserves(door: Door, sentence: str, status: int) -> None:
    for path in (GENERATE, GENERATE + "_stream"):
        answer = door.call(path, json.dumps({"text_input": sentence}).encode())
        assert (answer.status, answer.json()["error"]) == (status, sentence)


def test_a_stream_comes_as_it_is_made(door: Door) -> None:
    answer = door.call(GENERATE + "_stream", b'{"text_input": "short"}')
    assert answer.data == b"data: 1\n\ndata: 2\n\n"


def test_a_stream_that_is_lost_ends_with_an_error_event(door: Door) -> None:
    answer = door.call(GENERATE + "_stream", b'{"text_input": "short cut"}')
    assert answer.data.endswith(b'data: {"error": "the server lost this request; send it again"}\n\n')


def test_a_client_that_hangs_up_ends_the_request_of_the_server(door: Door, upstream: Upstream) -> None:
    body = b'{"text_input": "long"}'
    with socket.create_connection(("127.0.0.1", door.port)) as one:
        one.sendall(
            b"POST %s_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (GENERATE.encode(), len(body), body)
        )
        assert one.recv(1)
    assert upstream.hung_up.wait(5)


def test_while_the_server_is_away_clients_are_told_to_come_back() -> None:
    door = Door(free_port())
    try:
        answer = door.call(GENERATE, b'{"text_input": "a"}')
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        door.ready = False
        assert door.call("/v2/health/ready", method="GET").status == 503
        assert door.call("/v2/health/live", method="GET").status == 200  # it is being replaced: nobody need do more
    finally:
        door.close()


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        served = Served(Addresses("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"), ("nvlm",), lambda: True)
        gateway = Gateway("127.0.0.1", port, served, GatewaySettings())
        with pytest.raises(BusyError, match="HTTP port"):
            gateway.start()
        gateway.stop()
