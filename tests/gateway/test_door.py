"""What is refused before anything is done for it, and what ends early."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from nvlm_trt.gateway.fetch import Fetcher, Hold
from nvlm_trt.gateway.settings import Limits

from .door import Door, say
from .upstream import Upstream

GENERATE = "/v2/models/nvlm/generate"
KEY = "a-key-of-this-test-alone"
LONG = b'{"text_input": "long"}'
FLOOD = b'{"text_input": "flood"}'
PICTURE = json.dumps(
    {
        "model": "nvlm",
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.example/x.png"}}]}
        ],
    }
).encode()


class Endless(Fetcher):
    """Fetches for as long as it may."""

    async def fetch(self, url: str, hold: Hold) -> bytes:
        await asyncio.sleep(60)
        return b""


@pytest.fixture(scope="module")
def small() -> Iterator[Door]:
    """Little patience and small limits, nothing behind."""
    limits = Limits(max_body=1000, max_headers=10, max_header_bytes=2000, header_time=1.0, body_time=1.0)
    with Door(limits) as one:
        yield one


def test_too_many_headers_are_refused(small: Door) -> None:
    answer = say(small, b"GET /health/live HTTP/1.1\r\n" + b"a: b\r\n" * 11 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_headers_without_an_end_are_refused(small: Door) -> None:
    for pieces in ([b"GET /health/live HTTP/1.1\r\na: "], [b"GET /"]):
        answer = say(small, *pieces, *[b"x" * 1500] * 20)
        assert answer.startswith(b"HTTP/1.1 4") or answer == b""
    assert say(small, b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_connection_that_says_nothing_or_half_a_request_is_closed(small: Door) -> None:
    for words in (b"", b"GET /health/live HTTP/1.1\r\nHost: a\r\n"):
        assert say(small, words) == b""


def test_what_is_no_http_is_refused(small: Door) -> None:
    assert say(small, b"\x16\x03\x01\x02\x00 hello\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_body_that_does_not_come_is_not_waited_for(small: Door) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
    assert say(small, head).startswith(b"HTTP/1.1 408")


def test_hundreds_of_thousands_of_chunks_are_cut_off() -> None:
    with Door(Limits(max_chunks=10_000)) as door:
        head = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % GENERATE.encode()
        answer = say(door, head, *[b"1\r\nx\r\n" * 10_000] * 60)
        assert answer.startswith(b"HTTP/1.1 400") or answer == b""
        assert door.call("/health/live").status == 200


def test_more_connections_than_the_limit_are_closed() -> None:
    with Door(Limits(max_connections=3)) as door:
        connections = [door.connect() for _ in range(3)]
        assert say(door, b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        for connection in connections:
            connection.close()


def test_a_large_body_is_refused_by_its_length_and_the_client_hears_it(small: Door) -> None:
    answer = small.call("/v1/chat/completions", b"x" * 100_000)
    assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_without_a_key_only_probes_and_metrics_are_answered() -> None:
    with Door(Limits(), api_keys=(KEY,)) as door:
        for path in ("/v1/models", "/v1/chat/completions", GENERATE, "/v2", "/health/deep", "/nothing"):
            answer = door.call(path, b"{}" if path in (GENERATE, "/v1/chat/completions") else None)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json", "/v2/health/live"):
            assert door.call(path).status == 200
        assert door.call("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status == 200
        assert KEY not in door.call("/metrics").data.decode()


@pytest.mark.parametrize("path", ["/", "/page/nothing", "/health/live", "/metrics"])
def test_who_shows_no_key_gets_no_room_for_a_body(path: str) -> None:
    with Door(Limits(), api_keys=(KEY,)) as door:
        head = b"POST %s HTTP/1.1\r\nHost: a\r\n" % path.encode()
        assert say(door, head + b"Content-Length: 1000000\r\n\r\n").startswith(b"HTTP/1.1 413")
        chunk = b"1388\r\n" + bytes(5000)
        assert say(door, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk).startswith(b"HTTP/1.1 413")
        assert door.call(path, bytes(4096)).status in (404, 405)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/nothing"), ("PUT", "/v1/chat/completions"), ("POST", "/v2/repository/index")]
)
def test_what_counts_for_no_limit_of_a_key_gets_no_room_for_a_body(method: str, path: str) -> None:
    with Door(Limits(), api_keys=(KEY,)) as door:
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 4097\r\n\r\n"
        assert say(door, head.encode()).startswith(b"HTTP/1.1 413")


def test_requests_beyond_the_places_are_refused_at_once(upstream: Upstream) -> None:
    with Door(Limits(max_concurrent=1, max_queue=1), http=upstream.port) as door:
        waiting = [post(door, GENERATE + "_stream", LONG) for _ in range(2)]
        assert waiting[0].recv(12) == b"HTTP/1.1 200"
        wait_for(door, "nvlm_requests_waiting", 1)
        for path in (GENERATE, "/v1/chat/completions"):
            answer = door.call(path, b"{}")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert door.call("/health/live").status == 200
        assert door.metric('nvlm_refused_total{reason="overloaded"}') == 2
        for connection in waiting:
            connection.close()
        wait_for(door, "nvlm_requests_working", 0)
        assert door.call(GENERATE, b'{"text_input": "short"}').status == 202


def test_who_would_wait_for_too_long_is_refused_before_its_body_is_read(upstream: Upstream) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    with Door(Limits(max_concurrent=1, queue_time=0.05), http=upstream.port) as door:
        for _ in range(5):
            assert door.call(GENERATE, b'{"text_input": "short"}').status == 202
        with closing(post(door, GENERATE + "_stream", LONG)):
            wait_for(door, "nvlm_requests_working", 1)
            time.sleep(1.0)  # five answers in more than a second: the next one is due in more than 0.2 s
            answer = say(door, head)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in answer.lower()


def test_nobody_is_thought_to_wait_for_images_that_do_not_come(upstream: Upstream) -> None:
    limits = Limits(max_concurrent=1, fetch_time=60)
    with Door(limits, http=upstream.port, fetcher=Endless((), 0)) as door:
        assert door.call(GENERATE, b'{"text_input": "short"}').status == 202
        with closing(post(door, "/v1/chat/completions", PICTURE)):
            wait_for(door, "nvlm_requests_waiting", 1)
            time.sleep(1.0)
            assert door.metric("nvlm_expected_wait_seconds") == 0
            assert door.metric("nvlm_requests_waiting") == 1


def test_a_rate_is_kept() -> None:
    with Door(Limits(key_per_minute=1)) as door:
        assert door.call("/v1/completions", b"{}").status == 400
        answer = door.call("/v1/completions", b"{}")
        assert (answer.status, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["Retry-After"]) > 30
        assert door.call("/v1/models").status == 200


def test_the_deadline_ends_a_request_that_waits(upstream: Upstream) -> None:
    with Door(Limits(deadline=2.0, max_concurrent=1), http=upstream.port) as door:
        with closing(post(door, GENERATE + "_stream", FLOOD)):  # unread, it keeps its slot past its deadline
            wait_for(door, "nvlm_requests_working", 1)
            answer = door.call(GENERATE, b'{"text_input": "a"}')
        assert (answer.status, answer.json()) == (504, {"error": "the request took longer than it may"})
        assert [path for _, path, _, _ in upstream.seen if "generate" in path] == [GENERATE + "_stream"]


def test_a_stream_that_takes_too_long_ends_with_an_error_event(upstream: Upstream) -> None:
    with Door(Limits(deadline=2.0), http=upstream.port) as door:
        answer = door.call(GENERATE + "_stream", LONG)
    assert answer.data == b'data: 1\n\ndata: {"error": "the request took longer than it may"}\n\n'


def test_a_client_that_does_not_read_is_given_up(upstream: Upstream) -> None:
    limits = Limits(write_time=0.3)
    with (
        Door(limits, http=upstream.port) as door,
        closing(post(door, GENERATE + "_stream", b'{"text_input": "flood"}')),
    ):
        assert upstream.hung_up.wait(10)
        wait_for(door, 'nvlm_cancelled_total{route="generate_stream"}', 1)
        assert door.metric("nvlm_requests_working") == 0


def test_a_client_that_hangs_up_while_it_waits_gives_its_place_up(upstream: Upstream) -> None:
    with Door(Limits(max_concurrent=1), http=upstream.port) as door, closing(post(door, GENERATE + "_stream", LONG)):
        wait_for(door, "nvlm_requests_working", 1)
        large = json.dumps({"text_input": "long" * 100_000}).encode()
        waiting = post(door, GENERATE, large)
        wait_for(door, "nvlm_requests_waiting", 1)
        waiting.close()
        wait_for(door, "nvlm_requests_waiting", 0)
        assert door.metric("nvlm_buffered_bytes") == len(LONG)
        assert door.metric("nvlm_requests_working") == 1


def test_a_client_that_hangs_up_ends_the_fetching_for_it() -> None:
    began, ended = threading.Event(), threading.Event()

    class Slow(Fetcher):
        async def fetch(self, url: str, hold: Hold) -> bytes:
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return b""

    with Door(Limits(fetch_time=60), fetcher=Slow((), 0)) as door:
        connection = post(door, "/v1/chat/completions", PICTURE)
        assert began.wait(10)
        connection.close()
        assert ended.wait(10)


def test_an_image_server_that_is_slow_is_no_fault_of_this_one() -> None:
    """Alerts take 500 and 504 for our faults."""
    with Door(Limits(fetch_time=0.1), fetcher=Endless((), 0)) as door:
        answer = door.call("/v1/chat/completions", PICTURE)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "url_timeout")
        assert door.metric('nvlm_requests_total{route="chat",status="504"}') == 0


def test_fetched_images_take_room_until_their_request_has_ended() -> None:
    class Held(Fetcher):
        async def fetch(self, url: str, hold: Hold) -> bytes:
            hold(1000)
            await asyncio.sleep(60)
            return b""

    with Door(Limits(fetch_time=60, max_buffered=1500), fetcher=Held((), 0)) as door:
        first = post(door, "/v1/chat/completions", PICTURE)
        wait_for(door, "nvlm_buffered_bytes", len(PICTURE) + 1000)
        answer = door.call("/v1/chat/completions", PICTURE)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "overloaded")
        assert door.metric("nvlm_buffered_bytes") == len(PICTURE) + 1000
        first.close()
        wait_for(door, "nvlm_buffered_bytes", 0)


def test_a_request_id_is_kept_or_made(small: Door) -> None:
    assert small.call("/v1/models", headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"] == "mine-1"
    for given in ("", "a b", "x" * 65, "é"):
        made = small.call("/v1/models", headers={"X-Request-ID": given.encode().decode("latin-1")}).headers
        assert len(made["X-Request-ID"]) == 32


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/v1/chat/completions", "GET", 405),
        ("/docs", "GET", 404),
        ("/v1/models/x", "GET", 404),
    ],
)
def test_what_is_not_there_is_said_in_openais_form(small: Door, path: str, method: str, status: int) -> None:
    answer = small.call(path, method=method)
    assert answer.status == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b"\xff\xfe", b"[" * 900, b"{}"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_no_body_is_the_servers_fault(small: Door, body: bytes, kind: str) -> None:
    answer = small.call("/v1/chat/completions", body, headers={"Content-Type": kind})
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_while_the_server_is_away_a_chat_is_told_to_come_back(small: Door) -> None:
    small.ready = False
    body = json.dumps({"model": "nvlm", "messages": [{"role": "user", "content": "x"}]}).encode()
    answer = small.call("/v1/chat/completions", body)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert small.call("/health/ready").status == 503
    assert small.call("/health/deep").status == 503
    assert small.call("/health/live").status == 200
    small.ready = True


def test_the_openapi_document_lists_the_api(small: Door) -> None:
    document = small.call("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health/live"} <= document["paths"].keys()
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert answers.keys() == {"200", "4XX", "5XX"}
    assert answers["200"]["content"].keys() == {"application/json", "text/event-stream"}


def test_head_is_answered_as_get_without_a_body(small: Door) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        answer = small.call(path, method="HEAD")
        assert (answer.status, answer.data) == (200, b"")


def post(door: Door, path: str, body: bytes) -> socket.socket:
    """A connection on which a request was sent and no answer read."""
    connection = door.connect()
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
    )
    return connection


def wait_for(door: Door, line: str, value: float) -> None:
    """Wait until a metric has a value."""
    deadline = time.monotonic() + 10
    while door.metric(line) != value:
        assert time.monotonic() < deadline, f"{line} is not {value}"
        time.sleep(0.01)
