"""How fast a busy server works off what was planned."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

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


def serve(drain: Drain[int], clock: Clock, present: int, tokens: int, seconds: float, times: int) -> None:
    """Answer one request after the other, of `present` that are there at any time; the others go unanswered."""
    for number in range(present - 1):
        drain.came(number)
    for number in range(present - 1, present - 1 + times):
        drain.came(number)
        clock.now += seconds
        drain.answered(drain.line[0], tokens)
    for number in drain.line:
        drain.given_up(number)


def test_nothing_is_known_before_the_first_answer(clock: Clock) -> None:
    drain: Drain[str] = Drain(4, clock)
    drain.came("a")
    drain.came("b")
    clock.now += 100
    assert drain.rate == 0
    drain.given_up("a")
    drain.given_up("b")
    assert drain.rate == 0


def test_tokens_are_counted_over_the_time_in_which_there_is_work(clock: Clock) -> None:
    drain: Drain[int] = Drain(4, clock)
    serve(drain, clock, present=1, tokens=100, seconds=2.0, times=3)
    clock.now += 1000  # nobody is there
    assert drain.rate == pytest.approx(50, rel=0.1)


def test_what_a_full_batch_reaches_counts_once_it_was_full_for_long_enough(clock: Clock) -> None:
    drain: Drain[int] = Drain(4, clock)
    serve(drain, clock, present=1, tokens=100, seconds=1.0, times=30)
    for number in range(-3, 0):
        drain.came(number)
    for number in range(8):
        drain.came(number)
        clock.now += 0.25
        drain.answered(drain.line[0], 100)
        assert number >= 3 or drain.rate < 200  # three answers say little
    assert drain.rate == pytest.approx(400, rel=0.02)
    for number in drain.line:
        drain.given_up(number)
    serve(drain, clock, present=1, tokens=100, seconds=1.0, times=5)  # as little work as before says nothing of that
    assert drain.rate >= 400 * 0.98


def test_a_change_of_pace_is_seen_within_the_memory(clock: Clock) -> None:
    drain: Drain[int] = Drain(2, clock)
    serve(drain, clock, present=3, tokens=100, seconds=0.1, times=500)
    assert drain.rate == pytest.approx(1000, rel=0.02)
    serve(drain, clock, present=3, tokens=100, seconds=1.0, times=round(2 * MEMORY_SECONDS))
    assert drain.rate < 250


def test_a_decoder_that_stands_still_is_seen_before_the_next_answer(clock: Clock) -> None:
    drain: Drain[int] = Drain(2, clock)
    serve(drain, clock, present=3, tokens=100, seconds=0.1, times=500)
    drain.came(-1)
    drain.came(-2)
    clock.now += 10 * MEMORY_SECONDS
    assert drain.rate < 250


@pytest.mark.parametrize("rounds", [1, 1000])
@pytest.mark.parametrize("seconds", [0.1, 60.0])
def test_those_who_are_given_up_say_nothing_of_the_pace(clock: Clock, seconds: float, rounds: int) -> None:
    drain: Drain[str] = Drain(2, clock)
    for place in "abcd":
        drain.came(place)
        clock.now += 1
        drain.answered(place, 100)
    before = drain.rate
    for _ in range(rounds):  # hours, nobody is answered in them
        for place in "abcdef":
            drain.came(place)
        clock.now += seconds
        for place in "cabfed":
            drain.given_up(place)
    assert drain.rate == pytest.approx(before)


def test_those_who_are_given_up_behind_the_batch_had_no_share(clock: Clock) -> None:
    rates = []
    for waiting in ("", "xyz"):
        drain: Drain[str] = Drain(2, clock)
        for place in "ab" + waiting:
            drain.came(place)
        clock.now += 4
        for place in waiting:
            drain.given_up(place)
        drain.answered("a", 100)
        rates.append(drain.rate)
    assert rates[0] == rates[1] == pytest.approx(25, rel=0.05)


def test_those_who_were_passed_by_had_no_share_of_what_was_done_for_others(clock: Clock) -> None:
    drain: Drain[int] = Drain(2, clock)
    drain.came(-1)
    drain.came(-2)  # both wait for their images to be seen
    for text in range(100):
        drain.came(text)
        clock.now += 0.5
        drain.answered(text, 50)
    assert drain.rate == pytest.approx(100, rel=0.05)
    for image in (-1, -2):
        drain.given_up(image)
    assert drain.rate == pytest.approx(100, rel=0.05)


@dataclass
class Load:
    """Clients of a decoder that does `PACE` tokens a second, shared by the first of the line; each asks anew at once.

    Attributes:
        clients: How many.
        hanging_up: The share of their requests that are given up, sooner or later.
        patience: Seconds after which that happens, on average.
    """

    clients: int
    hanging_up: float
    patience: float
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def rates(self, batch: int, seconds: float, step: float = 0.05) -> list[float]:
        """The rate that is measured at each step, parts of the true one."""
        clock, numbers = Clock(), iter(range(10**9))
        drain: Drain[int] = Drain(batch, clock)
        tokens: dict[int, int] = {}
        left: dict[int, float] = {}
        gone: dict[int, float] = {}
        seen = []
        for _ in range(round(seconds / step)):
            while len(drain.line) < self.clients:
                number = next(numbers)
                drain.came(number)
                left[number] = tokens[number] = self.chance.randint(200, 2000)
                if self.chance.random() < self.hanging_up:
                    gone[number] = clock.now + self.chance.expovariate(1 / self.patience)
            clock.now += step
            served = drain.line[:batch]
            for number in served:
                left[number] -= PACE * step / len(served)
            for number in drain.line:
                if left[number] <= 0:
                    drain.answered(number, tokens[number])
                elif gone.get(number, clock.now) < clock.now:
                    drain.given_up(number)
            seen.append(drain.rate / PACE)
        return seen


PACE = 1000


@pytest.mark.parametrize("clients", [8, 24])
@pytest.mark.parametrize(("hanging_up", "patience"), [(0, 1), (0.3, 4), (0.3, 20), (0.7, 1), (0.7, 4)])
def test_the_pace_is_told_right_however_many_hang_up(clients: int, hanging_up: float, patience: float) -> None:
    rates = Load(clients, hanging_up, patience).rates(8, seconds=240)[1200:]
    assert 0.8 <= min(rates) <= max(rates) <= 1.2
