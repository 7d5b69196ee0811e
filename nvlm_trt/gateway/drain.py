"""How fast a busy server works off what was planned: what a newcomer's wait is told by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

MEMORY_SECONDS: Final = 30.0
"""Busy seconds after which what was measured counts for a third: a few answers, and no more than a change of load."""

Request = TypeVar("Request", bound=Hashable)


class Drain(Generic[Request]):
    """Measures tokens a second, planned tokens of requests that were answered.

    The first requests of the line, as many as the batch has places, share the decoder's time. An answer brings its
    tokens; a request that is given up takes its share of the time back, as though it had never been, so that it says
    nothing of the pace, whatever was done for it.

    Two rates are kept: one of the times in which the decoder's batch was full, which is the server's capacity, and one
    of all times in which there was work, which is no more than that. The second serves until there is enough of the
    first: whoever knows little promises little.

    Args:
        batch: Requests that the server works on at once.
        now: The clock, in seconds.
    """

    def __init__(self, batch: int, now: Callable[[], float] = time.monotonic) -> None:
        self._batch = batch
        self._now = now
        self._full: _Rate[Request] = _Rate()
        self._busy: _Rate[Request] = _Rate()
        self._line: dict[Request, None] = {}
        self._since = now()

    @property
    def line(self) -> tuple[Request, ...]:
        """Requests that are neither answered nor given up, in the order of coming."""
        return tuple(self._line)

    @property
    def rate(self) -> float:
        """Planned tokens a second; 0 before the first answer."""
        self._pass_time()
        return self._full.value if self._full.answers >= self._batch else self._busy.value

    def came(self, request: Request) -> None:
        """Note that a request came, at the end of the line."""
        self._pass_time()
        self._line[request] = None

    def answered(self, request: Request, tokens: int) -> None:
        """Note that a request of the line was answered."""
        self._pass_time()
        self._busy.answered(request, tokens)
        if len(self._line) >= self._batch:
            self._full.answered(request, tokens)
        else:
            self._full.ended(request)
        del self._line[request]

    def given_up(self, request: Request) -> None:
        """Note that a request will not be answered; one that is not in the line changes nothing."""
        self._pass_time()
        for rate in (self._busy, self._full):
            rate.given_up(request)
        self._line.pop(request, None)

    def _pass_time(self) -> None:
        now = self._now()
        seconds, self._since = now - self._since, now
        served = self.line[: self._batch]
        if served:
            self._busy.passed(seconds, served)
        if len(served) == self._batch:
            self._full.passed(seconds, served)


class _Rate(Generic[Request]):
    """Tokens over seconds, older ones counting less."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._shares: dict[Request, float] = {}  # of the seconds, those of requests that may still be given up
        self.answers = 0.0

    @property
    def value(self) -> float:
        return self._tokens / self._seconds if self._tokens and self._seconds > 0 else 0.0

    def passed(self, seconds: float, served: Sequence[Request]) -> None:
        self._seconds += seconds
        for request in served:
            self._shares[request] = self._shares.get(request, 0.0) + seconds / len(served)

    def answered(self, request: Request, tokens: int) -> None:
        if request not in self._shares and self._shares:
            request = next(iter(self._shares))  # it was passed by, as one with an image is by a text behind it
        self.ended(request)
        self._tokens += tokens
        self.answers += 1

    def ended(self, request: Request) -> None:
        """Keep a request's time. That alone makes the rest older: time that is taken back makes nothing forgotten."""
        share = self._shares.pop(request, 0.0)
        kept = math.exp(-share / MEMORY_SECONDS)
        self._tokens *= kept
        self._seconds = (self._seconds - share) * kept + share
        self.answers *= kept
        self._shares = {other: theirs * kept for other, theirs in self._shares.items()}

    def given_up(self, request: Request) -> None:
        self._seconds -= self._shares.pop(request, 0.0)
