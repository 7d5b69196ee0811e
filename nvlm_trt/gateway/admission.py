"""How many may come in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Final

from nvlm_trt.gateway.drain import Drain
from nvlm_trt.gateway.errors import ApiError, unavailable
from nvlm_trt.gateway.settings import Limits

LOOK_SECONDS: Final = 0.1
"""How often a request that waits looks whether the server is still there for it."""

MEAN_SHARE: Final = 0.1
"""Of a newly planned request in what requests take on average."""

SPREAD: Final = 1.4
"""So many times the expected wait has to be allowed. It is told by means, and depends on chance and on which requests
come with images: with the miniature, under four times the capacity, one in a hundred waited 1.3 times as long."""

MAX_RETRY_SECONDS: Final = 60
"""What is told of a wait beyond that holds no longer by then."""


class Place:
    """A request that came in.

    Attributes:
        tokens: Tokens of its prompt and its answer; what requests take on average, until it is planned.
        in_line: Whether it was ever in the line for the decoder.
    """

    __slots__ = ("in_line", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.in_line = False


class Admission:
    """Places for requests: some that the server works on, some that wait, no more than it answers in time.

    How long a newcomer would wait is told by the planned tokens of those before it and by how fast such tokens were
    worked off (`nvlm_trt.gateway.drain`). Those of the decoder's batch are served, so that nobody waits behind them but
    for one of their places. Whoever's body is still on its way, whose images are still fetched, or who asks for a plan
    alone is not in that line: nobody waits for it. So the line is looked at twice, at the door and when a request joins
    it: of many that come at once, all are let in and few may stay.

    Args:
        limits: How many.
        batch: Requests that the decoder works on at once, no more than may be worked on; None for so many.
        now: The clock, in seconds.
        is_ready: Whether the server takes requests.
        is_ending: Whether it will not take any again.

    Attributes:
        working: Requests that the server works on.
        buffered: Bytes of their bodies and fetched images.
    """

    def __init__(
        self,
        limits: Limits,
        batch: int | None = None,
        now: Callable[[], float] = time.monotonic,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limits = limits
        self._is_ready = is_ready
        self._is_ending = is_ending
        self._slots = asyncio.Semaphore(limits.max_concurrent)
        self._batch = min(batch or limits.max_concurrent, limits.max_concurrent)
        self._drain: Drain[Place] = Drain(self._batch, now)
        self._places: set[Place] = set()
        self._plans = 0
        self._mean = 1.0
        self.working = 0
        self.buffered = 0

    @property
    def present(self) -> int:
        """Requests that have a place."""
        return len(self._places)

    @property
    def planned(self) -> int:
        """Planned tokens of the requests that have a place."""
        return sum(place.tokens for place in self._places)

    @property
    def rate(self) -> float:
        """Planned tokens that are worked off in a second; 0 while nothing was measured."""
        return self._drain.rate

    @property
    def wait(self) -> float:
        """Seconds that a newcomer would wait until the decoder takes it; 0 while nothing was measured."""
        line = self._drain.line
        if len(line) < self._batch or not (rate := self.rate):
            return 0.0
        return (sum(place.tokens for place in line[self._batch :]) + self._mean) / rate

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A place, at once or never.

        Raises:
            ApiError: 503, the server is away, every place is taken, or those before it take too long.
        """
        limits = self._limits
        if not self._is_ready():
            raise unavailable()
        if self.present >= limits.max_concurrent + limits.max_queue:
            raise self._overloaded(self._mean)
        self._check_wait()
        place = Place(round(self._mean))
        self._places.add(place)
        try:
            yield place
        finally:
            self._drain.given_up(place)  # unless it was answered
            self._places.remove(place)

    def plan(self, place: Place, tokens: int) -> None:
        """Note what a request will take; it joins the line for the decoder.

        Raises:
            ApiError: 503, those before it take too long, or together with the others it takes more than there may be.
        """
        place.tokens = tokens
        self._plans += 1
        self._mean += (tokens - self._mean) * max(MEAN_SHARE, 1 / self._plans)
        self.line_up(place)
        excess = self.planned - self._limits.max_planned
        if excess > 0 and self.present > 1:
            raise self._overloaded(excess)

    def line_up(self, place: Place) -> None:
        """Note that nothing but the decoder is waited for: a request joins its line, if it is not in it.

        Raises:
            ApiError: 503, those before it take too long.
        """
        if not place.in_line:
            self._check_wait()
            place.in_line = True
            self._drain.came(place)

    def answered(self, place: Place) -> None:
        """Note that the server is done with a request of the line, though its answer may be on its way."""
        self._drain.answered(place, place.tokens)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until the server may be asked; in the order of coming, and while it is being replaced, too.

        Raises:
            ApiError: 503, the server ends: nothing was begun for this request, and another server can take it.
        """
        taken = asyncio.ensure_future(self._slots.acquire())
        try:
            while not taken.done() or not self._is_ready():
                if self._is_ending():
                    raise unavailable()
                await (asyncio.sleep(LOOK_SECONDS) if taken.done() else asyncio.wait({taken}, timeout=LOOK_SECONDS))
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1
        finally:
            if not taken.cancel():
                self._slots.release()

    def buffer(self, size: int) -> None:
        """Note bytes that are held; give them back with a negative size.

        Raises:
            ApiError: 503, too many bytes are held already.
        """
        if size > 0 and self.buffered + size > self._limits.max_buffered:
            raise unavailable("the server holds too many large requests; try again in a moment", "overloaded")
        self.buffered += size

    def _check_wait(self) -> None:
        late = self.wait - self._limits.queue_time / SPREAD
        if late > 0:
            raise self._overloaded(late * self.rate)

    def _overloaded(self, tokens: float) -> ApiError:
        """The refusal of a request that would have come in after so many tokens."""
        seconds = tokens / self.rate if self.rate else 0.0
        refusal = unavailable("the server is busy; try again in a moment", "overloaded")
        return replace(refusal, retry_after=min(seconds, MAX_RETRY_SECONDS))
