"""How fast a busy server works off what was planned."""

from __future__ import annotations

import pytest

from nvlm_trt.gateway.drain import MEMORY_SECONDS, Drain


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve(drain: Drain, clock: Clock, present: int, tokens: int, seconds: float, times: int) -> None:
    """Answer one request after the other, of `present` that are there at any time."""
    for _ in range(times):
        drain.changed(present)
        clock.now += seconds
        drain.answered(tokens)
        drain.changed(present - 1)


def test_nothing_is_known_before_the_first_answer(clock: Clock) -> None:
    drain = Drain(4, clock)
    drain.changed(2)
    clock.now += 100
    assert drain.rate == 0


def test_tokens_are_counted_over_the_time_in_which_there_is_work(clock: Clock) -> None:
    drain = Drain(4, clock)
    serve(drain, clock, present=1, tokens=100, seconds=2.0, times=3)
    clock.now += 1000  # nobody is there
    assert drain.rate == pytest.approx(50, rel=0.1)


def test_what_a_full_batch_reaches_counts_once_it_was_full_for_long_enough(clock: Clock) -> None:
    drain = Drain(4, clock)
    serve(drain, clock, present=1, tokens=100, seconds=1.0, times=30)
    serve(drain, clock, present=4, tokens=100, seconds=0.25, times=3)
    assert drain.rate < 200  # three answers say little
    serve(drain, clock, present=4, tokens=100, seconds=0.25, times=5)
    assert drain.rate == pytest.approx(400, rel=0.02)
    serve(drain, clock, present=1, tokens=100, seconds=1.0, times=5)  # as little work as before says nothing of that
    assert drain.rate == pytest.approx(400, rel=0.02)


def test_a_change_of_pace_is_seen_within_the_memory(clock: Clock) -> None:
    drain = Drain(2, clock)
    serve(drain, clock, present=3, tokens=100, seconds=0.1, times=500)
    assert drain.rate == pytest.approx(1000, rel=0.02)
    serve(drain, clock, present=3, tokens=100, seconds=1.0, times=round(2 * MEMORY_SECONDS))
    assert drain.rate < 250
