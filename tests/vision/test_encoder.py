"""The encoder for many requests: tiles in turn, equal ones once, rows as if each tile were alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nvlm_trt.errors import RequestError, ServerError
from nvlm_trt.vision.encoder import TileEncoder
from nvlm_trt.vision.runner import VisionRunner

BAD = 13


class Steps:
    """A vision encoder whose every tile is let through by the test; a tile is known by its value."""

    tokens_per_tile, hidden_size = 2, 3

    def __init__(self, *, free: bool = False) -> None:
        self.free = free
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.gate = threading.Semaphore(0)
        self.encoded: list[int] = []
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def check(self, tiles: np.ndarray) -> None:
        if tiles.dtype != np.uint8:
            raise RequestError("no tiles")

    def encode(self, tiles: np.ndarray, given_up: Callable[[], bool]) -> np.ndarray:
        (value,) = tiles[:, 0, 0, 0].tolist()
        self.begun.put(value)
        if not self.free:
            while not self.gate.acquire(timeout=0.002):
                if self.cancelled.is_set():
                    self.cancelled.clear()
                    raise RuntimeError("cancelled")
        if value == BAD:
            raise ValueError("a bad tile")
        self.encoded.append(value)
        return rows_of(value)


def rows_of(*values: int) -> np.ndarray:
    return np.stack([np.full((2, 3), value, np.float32) for value in values])


def tiles_of(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])


class Asked:
    """Requests of one test and, in the order of their ends, their outcomes."""

    def __init__(self, encoder: TileEncoder) -> None:
        self.encoder = encoder
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.outcomes: dict[str, object] = {}
        self.give_up: dict[str, Callable[[], bool]] = {}

    def __call__(self, name: str, *values: int) -> None:
        def done(outcome: object) -> None:
            self.outcomes[name] = outcome
            self.ended.put(name)

        self.give_up[name] = self.encoder.submit(tiles_of(*values), done)

    def next(self) -> str:
        return self.ended.get(timeout=30)


@pytest.fixture
def make():
    """Makes encoders, with what they ask and who asked."""
    encoders = []

    def one(*, cache_tiles: int = 0, free: bool = False):
        steps = Steps(free=free)
        encoder = TileEncoder(steps, cache_bytes=cache_tiles * rows_of(0).nbytes)
        encoders.append((steps, encoder))
        return steps, encoder, Asked(encoder)

    yield one
    for steps, encoder in encoders:
        steps.gate.release(1000)
        encoder.close()


def test_rows_come_in_the_order_of_the_tiles(make):
    _, encoder, _ = make(free=True)
    assert np.array_equal(encoder.encode(tiles_of(3, 1, 2)), rows_of(3, 1, 2))
    assert encoder.encode(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 2, 3)


def test_requests_take_turns_tile_by_tile(make):
    steps, _, ask = make()
    ask("long", 1, 2, 3, 4, 5)
    steps.begun.get(timeout=30)  # the first tile is under way
    ask("short", 6)
    ask("middle", 7, 8)
    steps.gate.release(8)
    assert [ask.next() for _ in range(3)] == ["short", "middle", "long"]
    assert steps.encoded == [1, 6, 7, 2, 8, 3, 4, 5]
    assert np.array_equal(ask.outcomes["middle"], rows_of(7, 8))


def test_a_request_waits_for_its_own_number_of_rounds_however_long_the_others_are(make):
    steps, _, ask = make()
    for number in range(3):
        ask(f"long {number}", *range(20 * number + 20, 20 * number + 40))
    steps.begun.get(timeout=30)
    ask("short", 1, 2)
    steps.gate.release(1000)
    assert ask.next() == "short"
    assert steps.encoded.index(2) < 1 + (3 + 1) * 2  # one under way, then two rounds of four requests


def test_equal_tiles_of_a_request_are_encoded_once_without_any_cache(make):
    steps, encoder, _ = make(free=True)
    assert np.array_equal(encoder.encode(tiles_of(5, 6, 5, 5)), rows_of(5, 6, 5, 5))
    assert steps.encoded == [5, 6]
    status = encoder.status()
    assert (status.hits, status.misses, status.bytes) == (2, 2, 0)


def test_requests_that_wait_for_the_same_tile_share_its_encoding_without_any_cache(make):
    steps, encoder, ask = make()
    ask("first", 1, 2)
    steps.begun.get(timeout=30)
    ask("second", 2, 1)
    ask("third", 1)
    steps.gate.release(10)
    assert sorted(ask.next() for _ in range(3)) == ["first", "second", "third"]
    assert steps.encoded == [1, 2]
    assert np.array_equal(ask.outcomes["second"], rows_of(2, 1))
    assert (encoder.status().hits, encoder.status().misses) == (3, 2)


def test_what_is_known_is_answered_while_others_wait(make):
    steps, encoder, ask = make(cache_tiles=4)
    ask("first", 1)
    steps.gate.release()
    assert ask.next() == "first"
    ask("slow", 2, 3)
    assert np.array_equal(encoder.encode(tiles_of(1, 1)), rows_of(1, 1))
    assert "slow" not in ask.outcomes


def test_without_a_cache_a_tile_is_encoded_each_time(make):
    steps, encoder, _ = make(free=True)
    for _ in range(3):
        encoder.encode(tiles_of(1))
    assert steps.encoded == [1, 1, 1]


def test_rows_are_right_and_the_bound_holds_while_tiles_push_one_another_out(make):
    _, encoder, _ = make(cache_tiles=3, free=True)
    asked = [[number % 7, (number * 3) % 5, number % 4] for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda values: encoder.encode(tiles_of(*values)), asked))
    assert all(np.array_equal(table, rows_of(*values)) for table, values in zip(tables, asked, strict=True))
    status = encoder.status()
    assert status.hits + status.misses == 600
    assert status.hits > 0 < status.evictions
    assert status.bytes <= status.max_bytes


def test_a_result_is_the_callers_own(make):
    _, encoder, _ = make(cache_tiles=4, free=True)
    encoder.encode(tiles_of(1))[:] = 99
    assert np.array_equal(encoder.encode(tiles_of(1)), rows_of(1))


def test_tiles_may_be_reused_after_the_call(make):
    steps, _, ask = make()
    ask("under way", 9)
    steps.begun.get(timeout=30)
    tiles, outcomes = tiles_of(1), queue.SimpleQueue()
    ask.encoder.submit(tiles, outcomes.put)
    tiles[:] = 2
    steps.gate.release(2)
    assert np.array_equal(outcomes.get(timeout=30), rows_of(1))


def test_a_bad_tile_fails_those_who_want_it_and_no_other(make, caplog):
    steps, encoder, ask = make(cache_tiles=9)
    ask("good", 1, 2)
    steps.begun.get(timeout=30)
    ask("bad", 3, BAD, 4)
    steps.gate.release(10)
    assert {ask.next(), ask.next()} == {"good", "bad"}
    assert isinstance(ask.outcomes["bad"], ValueError)
    assert np.array_equal(ask.outcomes["good"], rows_of(1, 2))
    steps.free = True
    with pytest.raises(ValueError, match="a bad tile"):
        encoder.encode(tiles_of(BAD))  # a fault is not remembered
    assert "encoding a tile failed" in caplog.text


def test_a_callers_fault_does_not_end_the_worker(make, caplog):
    _, encoder, _ = make(free=True)

    def done(_: object) -> None:
        raise KeyError("x")

    encoder.submit(tiles_of(1), done)
    assert np.array_equal(encoder.encode(tiles_of(2)), rows_of(2))
    assert "handing over" in caplog.text


def test_a_request_whose_table_cannot_be_made_ends_with_the_fault(make, monkeypatch):
    runner, encoder, ask = make()

    def no_memory(job):
        raise MemoryError

    monkeypatch.setattr(encoder, "_table", no_memory)
    ask("one", 1)
    runner.gate.release()
    assert ask.ended.get(timeout=30) == "one"
    assert isinstance(ask.outcomes["one"], MemoryError)


def test_what_is_no_tile_is_refused_before_it_waits(make):
    _, encoder, _ = make()
    with pytest.raises(RequestError):
        encoder.encode(np.zeros((1, 4, 4, 3), np.float32))
    assert encoder.waiting == 0


def test_closing_ends_what_waits_and_refuses_what_comes(make):
    steps, encoder, ask = make()
    ask("first", 1, 2)
    steps.begun.get(timeout=30)
    closing = threading.Thread(target=encoder.close)
    closing.start()
    steps.gate.release()
    assert ask.next() == "first"
    closing.join(timeout=30)
    assert isinstance(ask.outcomes["first"], ServerError)
    with pytest.raises(ServerError, match="closed"):
        encoder.encode(tiles_of(1))


def test_a_request_that_closing_ends_can_be_given_up_no_more():
    steps = Steps()
    encoder = TileEncoder(steps)
    told, in_time = [], []

    def done(outcome: np.ndarray | Exception) -> None:
        told.append(outcome)
        if isinstance(outcome, Exception):
            in_time.extend(give_up() for give_up in give_ups)

    give_ups = [encoder.submit(tiles_of(value), done) for value in (1, 2, 3)]
    steps.begun.get(timeout=30)
    closing = threading.Thread(target=encoder.close)
    closing.start()
    steps.gate.release()
    closing.join(timeout=30)
    assert len(told) == 3
    assert not any(in_time)


def test_the_real_engine_s_rows_are_the_same_bit_for_bit(export_of, tiles_of):
    runner = VisionRunner(export_of("five heads and three dummies", "bf16") / "cpu", threads=1)
    tiles = tiles_of(5, runner.tile_size)
    expected = runner.encode(tiles)
    encoder = TileEncoder(runner, cache_bytes=3 * expected[0].nbytes)
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda start: encoder.encode(tiles[start:]), [0, 1, 2, 3, 4] * 3))
    encoder.close()
    for number, table in enumerate(tables):
        assert np.array_equal(table, expected[number % 5 :])


def test_a_request_that_is_given_up_has_its_tile_ended_and_no_further_one_begun(make, caplog):
    steps, encoder, ask = make()
    ask("gone", 1, 2, 3)
    assert steps.begun.get(timeout=30) == 1
    assert ask.give_up["gone"]()
    ask("next", 4)
    assert steps.begun.get(timeout=30) == 4
    steps.gate.release()
    assert ask.next() == "next"
    assert (steps.encoded, encoder.waiting, "gone" in ask.outcomes) == ([4], 0, False)
    assert not caplog.text


def test_a_tile_that_others_wait_for_is_encoded_to_its_end(make):
    steps, _, ask = make()
    ask("gone", 1, 2)
    assert steps.begun.get(timeout=30) == 1
    ask("other", 1)
    assert ask.give_up["gone"]()
    steps.gate.release()
    assert ask.next() == "other"
    assert np.array_equal(ask.outcomes["other"], rows_of(1))
    assert steps.encoded == [1]


def test_who_comes_to_wait_for_a_tile_that_is_being_ended_gets_it(make):
    steps, _, ask = make()
    ask("gone", 1)
    assert steps.begun.get(timeout=30) == 1
    ended, steps.cancelled = steps.cancelled, threading.Event()  # the end is slow to come
    steps.cancel = ended.set
    assert ask.give_up["gone"]()
    ask("late", 1)
    del steps.cancel
    steps.cancel()
    assert steps.begun.get(timeout=30) == 1
    steps.gate.release()
    assert ask.next() == "late"
    assert np.array_equal(ask.outcomes["late"], rows_of(1))


def test_giving_up_what_was_answered_does_nothing(make):
    _, _, ask = make(free=True)
    ask("done", 1)
    assert ask.next() == "done"
    assert not ask.give_up["done"]()
