"""Rows go back to those who asked, from one thread, whatever the encoder and the others do."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from nvlm_trt.errors import RequestError
from nvlm_trt.serving.faults import CancelledByClientError
from nvlm_trt.serving.vision_encoder import VisionServer
from nvlm_trt.vision.cache import VisionCacheStatus

ROWS = np.ones((1, 2, 3), np.float32)


class Encoder:
    """Keeps what is done with rows until the test gives them; refuses a tile of 13."""

    def __init__(self) -> None:
        self.waiting = []
        self.answered = 0
        self.closed = False

    def submit(self, tiles, done, found=None):
        if (tiles[:, 0, 0, 0] == 13).any():
            raise RequestError("no tile")
        self.waiting.append(done)
        return lambda: self.waiting.remove(done) is None

    def give(self, outcome):
        self.answered += 1
        self.waiting.pop(0)(outcome)

    def status(self):
        return VisionCacheStatus(0, self.answered, 0, 0, 0, 0)

    def close(self):
        self.closed = True


class Channel:
    """Notes what is sent, by which thread; fails on demand."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.thread = ""
        self.broken = broken

    def send(self, rows):
        self.thread = threading.current_thread().name
        if self.broken:
            raise OSError("gone")
        self.sent.put(rows)

    def fail(self, error):
        self.thread = threading.current_thread().name
        self.sent.put(error)

    def next(self):
        return self.sent.get(timeout=30)


@pytest.fixture
def served():
    encoder, reported = Encoder(), queue.SimpleQueue()
    server = VisionServer(encoder, reported.put, lost=lambda: reported.put("lost"))
    yield server, encoder, reported
    server.close()
    assert encoder.closed


def tile(value: int = 1) -> np.ndarray:
    return np.full((1, 4, 4, 3), value, np.uint8)


def test_rows_and_errors_go_to_those_who_asked_from_one_thread(served):
    server, encoder, _ = served
    first, second, third = (Channel() for _ in range(3))
    server.submit(tile(), first)
    server.submit(tile(), second)
    server.submit(tile(13), third)
    encoder.give(ROWS)
    fault = ValueError("bad")
    encoder.give(fault)
    assert first.next() is ROWS
    assert second.next() is fault
    assert isinstance(third.next(), RequestError)
    assert {first.thread, second.thread, third.thread} == {"nvlm-vision-sender"}


def test_the_caches_figures_are_told_after_each_answer(served):
    server, encoder, reported = served
    for count in (1, 2):
        channel = Channel()
        server.submit(tile(), channel)
        encoder.give(ROWS)
        assert channel.next() is ROWS
        assert reported.get(timeout=30).misses == count


def test_an_answer_that_cannot_be_sent_is_told_and_does_not_hold_up_the_others(served, caplog):
    server, encoder, reported = served
    gone, here = Channel(broken=True), Channel()
    server.submit(tile(), gone)
    server.submit(tile(), here)
    encoder.give(ROWS)
    encoder.give(ROWS)
    assert here.next() is ROWS
    assert reported.get(timeout=30) == "lost"
    assert "the answer to a request could not be sent" in caplog.text


def test_a_stop_is_heard_however_many_pixels_wait(served):
    server, encoder, _ = served
    many = np.broadcast_to(np.uint8(1), (2000, 448, 448, 3))  # 1.2 GB of pixels, if they were there
    channels = [Channel() for _ in range(3)]

    def execute() -> None:
        for number, channel in enumerate(channels):
            server.submit(many, channel, client_id=str(number))
        server.stop("0")

    executing = threading.Thread(target=execute, daemon=True)
    executing.start()
    assert isinstance(channels[0].next(), CancelledByClientError)
    executing.join(timeout=30)
    for channel in channels[1:]:
        encoder.give(ROWS)
        assert channel.next() is ROWS


def test_what_is_to_be_sent_is_sent_before_the_end(served):
    server, encoder, _ = served
    channel = Channel()
    server.submit(tile(), channel)
    encoder.give(ROWS)
    server.close()
    assert channel.sent.get_nowait() is ROWS


def test_requests_are_stopped_by_their_id_and_no_others(served):
    server, encoder, _ = served
    mine, yours, nobodys = (Channel() for _ in range(3))
    for channel, client_id in ((mine, "mine"), (yours, "yours"), (nobodys, "")):
        server.submit(tile(), channel, client_id=client_id)
    server.stop("")
    server.stop("unknown")
    server.stop("mine")
    assert isinstance(mine.next(), CancelledByClientError)
    server.stop("mine")
    for _ in range(2):
        encoder.give(ROWS)
    assert yours.next() is ROWS
    assert nobodys.next() is ROWS
    assert mine.sent.empty()
