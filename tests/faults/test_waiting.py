"""Clients that do not read, and requests that wait for longer than they may (faults 14 and 16)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from nvlm_trt.gateway.settings import Limits

from ..gateway.door import read_all
from .conftest import WORDY, Beside, FaultRecord, OpenDoor, Watch
from .neighbour import LONG
from .served import Served, wait_until
from .wire import CHAT, ask, chat

Begin = Callable[[], Watch]
NARROW = 4096
"""Bytes that the kernel keeps on either side of a connection; else it would hold a whole answer of the tiny model."""


def metric(address: str, line: str) -> float:
    """The value of a metric, by the text of its line."""
    for found in ask(address, "/metrics").body.decode().splitlines():
        name, _, value = found.rpartition(" ")
        if name == line:
            return float(value)
    return 0.0


def idle(address: str) -> bool:
    """Whether the gateway has no request in work."""
    return metric(address, "nvlm_requests_working") == 0


@pytest.mark.fault(case=14)
def test_clients_that_do_not_read_are_given_up_and_hold_nothing(
    served: Served, door: OpenDoor, limits: Limits, watch: Begin, fault_record: FaultRecord
) -> None:
    front = door(replace(limits, write_time=1.0))
    narrow(front)
    began = watch()
    connections = [begin(front.address) for _ in range(6)]
    wait_until(lambda: metric(front.address, "nvlm_requests_working") == 6, 10, "they were not taken")
    good = ask(front.address, CHAT, chat("Hello"))
    started = time.monotonic()
    wait_until(lambda: idle(front.address), 15, "who does not read keeps a place")
    took = time.monotonic() - started
    growth, seen = began.end()
    assert metric(front.address, 'nvlm_cancelled_total{route="chat"}') == 6
    assert good.status == 200
    assert growth < 60
    for connection in connections:
        with connection:
            assert b"[DONE]" not in read_all(connection)
    fault_record(time_ms=took * 1000, memory_mb=growth, others=seen, variant="6 streams, 1 s to read")


def narrow(front: Beside) -> None:
    """Let connections that are taken from now on hold little in the kernel."""
    listening = front.gateway._socket
    assert listening is not None
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)


def begin(address: str) -> socket.socket:
    """Ask for a long stream and read nothing of it."""
    host, port = address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
    connection.connect((host, int(port)))
    body = json.dumps({**LONG, "model": WORDY}).encode()
    lines = (f"POST {CHAT} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", "", "")
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


@pytest.mark.fault(case=16)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_while_a_request_waits_is_told_at_the_deadline(
    door: OpenDoor, limits: Limits, watch: Begin, fault_record: FaultRecord, stream: bool
) -> None:
    """Not when a place becomes free: the one that works here goes on past the deadline of the one that waits."""
    deadline = 3.0  # in which the one that takes the place gets stuck
    front = door(replace(limits, max_concurrent=1, deadline=deadline))
    began = watch()
    with occupied(front):
        answer = ask(front.address, CHAT, chat("Hello", stream=stream))
        assert metric(front.address, "nvlm_requests_working") == 1
    growth, seen = began.end()
    assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
    late = answer.ms - deadline * 1000
    assert -50 < late < 5000  # its place becomes free much later
    fault_record(time_ms=late, memory_mb=growth, others=seen, variant="after the deadline" + ", a stream" * stream)


class occupied:  # noqa: N801  # reads as what it is in a with statement
    """The only place of a gateway, taken by a request whose client does not read; so it outlives its own deadline."""

    def __init__(self, front: Beside) -> None:
        self._front = front

    def __enter__(self) -> None:
        narrow(self._front)
        self._connection = begin(self._front.address)
        wait_until(lambda: not idle(self._front.address), 10, "the place was not taken")

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@pytest.mark.fault(case=16)
def test_the_deadline_of_an_answer_under_way_ends_its_stream_with_an_event(
    served: Served, door: OpenDoor, limits: Limits, fault_record: FaultRecord
) -> None:
    front = door(replace(limits, deadline=0.2))
    load = [threading.Thread(target=ask, args=(served.http, CHAT, LONG)) for _ in range(6)]
    for thread in load:
        thread.start()
    answer = ask(front.address, CHAT, {**LONG, "messages": [{"role": "user", "content": "Another"}]})
    for thread in load:
        thread.join()
    last = answer.body.strip().split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    fault_record(time_ms=answer.ms - 200, variant="after the deadline, while it streams")
