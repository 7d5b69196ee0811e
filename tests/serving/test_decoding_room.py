"""Images are read as far as there is memory for it, in the order of asking."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, sleep

import pytest

from nvlm_trt.serving.decoding_room import DecodingRoom


def nobody() -> None:
    """A watcher that ends nothing."""


class Holder:
    """Asks for room in a thread of its own, and holds it until it is told to leave."""

    def __init__(self, room: DecodingRoom, size: int, watch: Callable[[], None] = nobody) -> None:
        self.inside, self._leave = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self.future: Future[None] = self._threads.submit(self._hold, room, size, watch)

    def _hold(self, room: DecodingRoom, size: int, watch: Callable[[], None]) -> None:
        with room.hold(size, watch):
            self.inside.set()
            assert self._leave.wait(10)

    def leave(self) -> None:
        self._leave.set()
        self.future.result(10)


def asked_one_after_the_other(room: DecodingRoom, *sizes: int) -> list[Holder]:
    holders = []
    for size in sizes:
        holders.append(Holder(room, size))
        holders[-1].inside.wait(0.1)
    return holders


def test_who_finds_no_room_waits_and_who_comes_later_does_not_pass():
    first, large, small = asked_one_after_the_other(DecodingRoom(10), 6, 5, 1)
    assert [one.inside.is_set() for one in (first, large, small)] == [True, False, False]
    first.leave()
    assert large.inside.wait(5)
    assert small.inside.wait(5)
    large.leave()
    small.leave()


def test_who_needs_nothing_waits_for_nobody():
    first, large, none = asked_one_after_the_other(DecodingRoom(10), 6, 5, 0)
    assert [one.inside.is_set() for one in (first, large, none)] == [True, False, True]
    none.leave()
    first.leave()
    large.leave()


def test_who_needs_more_than_there_is_gets_in_alone():
    first, huge, small = asked_one_after_the_other(DecodingRoom(10), 1, 100, 1)
    assert not huge.inside.is_set()
    first.leave()
    assert huge.inside.wait(5)
    assert not small.inside.is_set()
    huge.leave()
    assert small.inside.wait(5)
    small.leave()


def test_who_is_given_up_while_it_waits_leaves_at_once_and_holds_nobody_up():
    room, gone = DecodingRoom(10), threading.Event()

    def watch() -> None:
        if gone.is_set():
            raise InterruptedError

    first = Holder(room, 6)
    assert first.inside.wait(5)
    given_up = Holder(room, 10, watch)
    sleep(0.1)
    behind = Holder(room, 4)
    assert not behind.inside.wait(0.1)
    asked = monotonic()
    gone.set()
    with pytest.raises(InterruptedError):
        given_up.future.result(5)
    assert behind.inside.wait(5)
    assert monotonic() - asked < 1
    first.leave()
    behind.leave()


def test_an_error_inside_gives_the_room_back():
    room = DecodingRoom(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), room.hold(10, nobody):
            _ = 1 / 0
