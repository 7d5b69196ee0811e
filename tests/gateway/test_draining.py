"""A gateway that is about to end: nobody new comes in, whoever is in is finished, idle connections are closed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nvlm_trt.gateway.settings import Limits

from .door import Door
from .upstream import Upstream

STREAM = "/v2/models/nvlm/generate_stream"


@pytest.fixture
def door(upstream: Upstream) -> Iterator[Door]:
    """A gateway that may be drained."""
    with Door(Limits(max_concurrent=2), http=upstream.port, grace=5.0) as made:
        yield made


def drain(door: Door, hurry: threading.Event | None = None) -> threading.Thread:
    """Begin to drain, as the supervisor does: unready first."""
    door.ready = False
    thread = threading.Thread(target=door.gateway.drain, args=(hurry or threading.Event(),))
    thread.start()
    time.sleep(0.1)
    return thread


def question(text: str) -> bytes:
    return json.dumps({"text_input": text, "max_tokens": 3, "stream": True}).encode()


def test_a_newcomer_is_told_to_come_back_on_another_connection(door: Door) -> None:
    drain(door).join(5)
    for path in ("/v1/chat/completions", STREAM):
        answer = door.call(path, question("x"))
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
    answer = door.call("/health/ready")
    assert (answer.status, answer.headers["Connection"]) == (503, "close")
    assert door.call("/v2/health/ready").status == 503
    assert door.call("/v2/models/nvlm/ready").status == 503
    assert door.call("/v2/models/nvlm/versions/1/ready").status == 503
    assert door.call("/health/live").status == 200


def test_an_idle_connection_is_closed(door: Door) -> None:
    with door.connect() as idle:
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in received(idle, b'{"status":"live"}')
        drain(door).join(5)
        idle.settimeout(5)
        assert idle.recv(4096) == b""


def test_a_stream_under_way_is_finished_and_waited_for(door: Door, upstream: Upstream) -> None:
    with door.connect() as running:
        body = question("running")
        head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        running.sendall(head.encode() + body)
        assert b"data: 1" in received(running, b"data: 1")
        hurry = threading.Event()
        draining = drain(door, hurry)
        assert draining.is_alive()
        hurry.set()
        draining.join(5)
        assert not draining.is_alive()


def test_a_stream_that_ends_ends_the_drain(door: Door) -> None:
    answers = []
    asking = threading.Thread(target=lambda: answers.append(door.call(STREAM, question("short"))))
    asking.start()
    asking.join(5)
    began = time.monotonic()
    drain(door).join(5)
    assert time.monotonic() - began < 4
    assert answers[0].status == 200
    assert answers[0].data.endswith(b"data: 2\n\n")


def received(one: socket.socket, until: bytes) -> bytes:
    """What came, up to and with something."""
    data = b""
    one.settimeout(5)
    while until not in data:
        data += one.recv(4096)
    return data
