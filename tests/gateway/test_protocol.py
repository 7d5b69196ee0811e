"""What comes before, between and after bodies is bounded, and no connection is kept for it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from nvlm_trt.gateway.protocol import MAX_AHEAD
from nvlm_trt.gateway.settings import Limits

from .door import Door, read_all, say
from .upstream import Upstream

CHUNKED = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1 << 20
ENDLESS = 48 * MIB
LARGEST = 15 * MIB
"""Of what the server behind takes."""


@pytest.fixture(scope="module")
def small() -> Iterator[Door]:
    """Little room for headers, and little patience for them."""
    with Door(Limits(max_header_bytes=2000, header_time=1.0)) as one:
        yield one


@pytest.mark.parametrize("begin", [b"0\r\nX: ", b"0\r\n", b"1;", b"1\r\nx\r\n1;name="], ids=repr)
def test_what_frames_a_body_is_bounded(small: Door, begin: bytes) -> None:
    """Not one byte follows the first that is too many: what is unread when a connection is closed takes the answer."""
    before = CHUNKED % b"/health/live" + begin
    pieces = [before, b"a" * (1999 - len(before)), b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    assert say(small, *pieces).startswith(b"HTTP/1.1 431")


def test_a_head_that_does_not_end_is_bounded(small: Door) -> None:
    assert say(small, b"GET / HTTP/1.1\r\na: ", b"x" * 1500, b"x" * 500).startswith(b"HTTP/1.1 431")


def test_endless_trailers_are_cut_off(small: Door) -> None:
    sent = 0
    with small.connect() as connection:
        connection.sendall(CHUNKED % b"/health/live" + b"0\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while sent < ENDLESS:
                connection.sendall(b"a" * MIB)
                sent += MIB
    assert sent < ENDLESS


def test_a_body_and_its_chunks_are_not_what_frames_it(small: Door) -> None:
    many = b"1\r\nx\r\n" * 1000 + b"100\r\n" + b"x" * 256 + b"\r\n" + b"0\r\nX: y\r\n\r\n"
    pieces = [many[begin : begin + 7] for begin in range(0, len(many), 7)]
    for body in ([many], pieces):
        answer = say(small, CHUNKED.replace(b"Host", b"Connection: close\r\nHost") % b"/v1/completions", *body)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_json"


def test_every_request_of_a_connection_has_the_whole_room(small: Door) -> None:
    large = LIVE.replace(b"Host", b"X: " + b"x" * 300 + b"\r\nHost")
    last = LIVE.replace(b"Host", b"Connection: close\r\nHost")
    assert len(large) * MAX_AHEAD > 2 * 2000
    assert say(small, large * MAX_AHEAD + last).count(b"HTTP/1.1 200") == MAX_AHEAD + 1
    assert say(small, *[large] * MAX_AHEAD, last).count(b"HTTP/1.1 200") == MAX_AHEAD + 1


def test_requests_sent_far_ahead_of_their_answers_close_the_connection_and_none_gets_another_s_answer(
    upstream: Upstream,
) -> None:
    body = b'{"text_input": "long"}'
    for first in (LIVE, STREAM % (len(body), body)):
        with Door(Limits(), http=upstream.port) as door:
            assert say(door, first + LIVE * 10_000) == b""
            assert door.call("/health/live").status == 200
    assert not upstream.seen


def test_a_trailer_is_no_header(small: Door) -> None:
    head = CHUNKED.replace(b"Host", b"Connection: close\r\nHost") % b"/health/live"
    answer = say(small, head + b"0\r\nX-Request-ID: trailer\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"trailer" not in answer


def test_line_ends_keep_no_connection(small: Door) -> None:
    with small.connect() as connection:
        connection.sendall(LIVE)
        assert answer_of(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def test_a_line_end_while_an_answer_is_under_way_ends_nothing(upstream: Upstream) -> None:
    """Some clients send one after a body."""
    body = b'{"text_input": "2 seconds"}'
    head = (
        b"POST /v2/models/nvlm/generate_stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    with Door(Limits(header_time=0.5), http=upstream.port) as door, door.connect() as connection:
        connection.sendall(head % len(body) + body)
        answer_of(connection, b"data: 1")
        connection.sendall(b"\r\n")
        assert b"data: 2" in read_all(connection)


STREAM = b"POST /v2/models/nvlm/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
LARGE = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"


@pytest.mark.parametrize("behind", [LIVE, LIVE * 16, LARGE + b"x" * 30_000], ids=["one", "many", "a large one"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_hangs_up_ends_its_request_whatever_it_has_sent_behind_it(
    upstream: Upstream, behind: bytes, at_once: bool
) -> None:
    body = b'{"text_input": "long"}'
    first = STREAM % (len(body), body)
    with Door(Limits(), http=upstream.port) as door:
        with door.connect() as connection:
            connection.sendall(first + behind if at_once else first)
            answer_of(connection, b"data: 1")
            if not at_once:
                connection.sendall(behind)
        assert upstream.hung_up.wait(5)


def test_what_is_sent_behind_a_request_is_answered_after_it(upstream: Upstream) -> None:
    body = b'{"text_input": "2 seconds"}'
    with Door(Limits(), http=upstream.port) as door, door.connect() as connection:
        connection.sendall(STREAM % (len(body), body))
        answer_of(connection, b"data: 1")
        connection.sendall(LIVE)
        connection.sendall(LIVE.replace(b"Host", b"Connection: close\r\nHost"))
        answer = read_all(connection)
    assert answer.index(b"data: 2") < answer.index(b'{"status":"live"}')
    assert answer.count(b'{"status":"live"}') == 2


INFER = b"POST /v2/models/nvlm/infer HTTP/1.1\r\nHost: a\r\nConnection: %s\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_a_client_that_does_not_read_the_end_of_its_answer_loses_its_connection(
    upstream: Upstream, connection: bytes
) -> None:
    with Door(Limits(write_time=0.3, max_connections=1), http=upstream.port) as door, door.connect() as idle:
        idle.sendall(INFER % (connection, LARGEST) + bytes(LARGEST))
        idle.recv(100)
        began = time.monotonic()
        while not say(door, LIVE.replace(b"Host", b"Connection: close\r\nHost")):
            assert time.monotonic() < began + 10
            time.sleep(0.05)


def test_a_client_that_reads_slowly_has_its_whole_answer(upstream: Upstream) -> None:
    with Door(Limits(write_time=0.5), http=upstream.port) as door, door.connect() as slow:
        slow.sendall(INFER % (b"close", LARGEST) + bytes(LARGEST))
        came = 0
        while piece := slow.recv(MIB, socket.MSG_WAITALL):
            came += len(piece)
            time.sleep(0.1)
    assert came > LARGEST


OFFER = (
    b"POST /v2/models/nvlm/generate HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: a\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n%s\r\n\r\n"
)
LENGTH = OFFER % b"Content-Length: %d" + b"%s"
CHUNKS = OFFER % b"Transfer-Encoding: chunked" + b"%x\r\n%s\r\n0\r\n\r\n"


@pytest.mark.parametrize("form", [LENGTH, CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 7, 300, 10_000])
def test_a_request_that_offers_another_protocol_is_answered_in_this_one_with_its_whole_body(
    upstream: Upstream, form: bytes, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """So does every first request of Java's HttpClient."""
    body = b'{"text_input": "GET /metrics HTTP/1.1"}'
    said = form % (len(body), body) * 2 + LIVE.replace(b"Host", b"Connection: close\r\nHost")
    with Door(Limits(), http=upstream.port) as door:
        answer = say(door, *[said[begin : begin + size] for begin in range(0, len(said), size)])
    assert answer.count(b"HTTP/1.1 202") == 2
    assert answer.count(b"GET /metrics") == 2
    assert answer.endswith(b'{"status":"live"}')
    assert [json.loads(body)["text_input"] for _, _, body, _ in upstream.seen] == ["GET /metrics HTTP/1.1"] * 2
    assert not caplog.records


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_offer_of_another_protocol_keeps_neither_a_connection_nor_its_limits(small: Door, offer: bytes) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: %s, Upgrade\r\nUpgrade: %s\r\n"
    assert say(small, head % (b"close", offer) + b"\r\n").startswith(b"HTTP/1.1 200")
    assert say(small, head % (b"x", offer) + b"a: " + b"x" * 1990 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert say(small, head % (b"x", offer)) == b""


def test_it_is_no_proxy(small: Door) -> None:
    for place in (b"a:443", b"/health/live"):
        assert say(small, b"CONNECT %s HTTP/1.1\r\nHost: a\r\n\r\n" % place + LIVE).count(b"HTTP/1.1") == 1


def answer_of(connection: socket.socket, end: bytes = b'{"status":"live"}') -> bytes:
    """What comes until some words have come."""
    answer = b""
    while end not in answer:
        piece = connection.recv(65536)
        assert piece, answer
        answer += piece
    return answer
