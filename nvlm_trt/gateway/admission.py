"""How many may come in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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

BODY_SECONDS: Final = 1.0
"""Whoever's body takes longer counts for nothing before it is there: neither as waiting for the decoder, nor among the
requests that may come in. Such bodies are bounded by their bytes and by the number of connections. Whose images take
longer does not count as waiting for the decoder either."""

MAX_RETRY_SECONDS: Final = 60
"""What is told of a wait beyond that holds no longer by then."""


class Place:
    """A request that came in.

    Attributes:
        tokens: Tokens of its prompt and its answer; what requests take on average, until it is planned.
        came: When it came in.
        joins: Whether it will be in the line for the decoder.
        has_arrived: Whether its body is there.
        reads_images: Whether it waits for its images.
        in_line: Whether it was ever in the line for the decoder.
    """

    __slots__ = ("came", "has_arrived", "in_line", "joins", "reads_images", "tokens")

    def __init__(self, tokens: int, came: float, *, joins: bool) -> None:
        self.tokens = tokens
        self.came = came
        self.joins = joins
        self.has_arrived = False
        self.reads_images = False
        self.in_line = False


class Admission:
    """Places for requests: some that the server works on, some that wait, no more than it answers in time.

    How long a newcomer would wait is told by the planned tokens of those before it and by how fast such tokens were
    worked off (`nvlm_trt.gateway.drain`). Those of the decoder's batch are served, so that nobody waits behind them but
    for one of their places. Who came in is before a newcomer; but whose body or images take their time is so only once
    they are there. A request joins the line when it is planned, and is refused then if the line is certainly too long.

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
        self._places: dict[Place, None] = {}  # in the order of coming
        self._now = now
        self._plans = 0
        self._mean = 1.0
        self.working = 0
        self.buffered = 0

    @property
    def present(self) -> int:
        """Requests that have a place, but those whose bodies take their time."""
        return len(self._present())

    @property
    def planned(self) -> int:
        """Planned tokens of those requests."""
        return sum(place.tokens for place in self._present())

    @property
    def rate(self) -> float:
        """Planned tokens that are worked off in a second; 0 while nothing was measured."""
        return self._drain.rate

    @property
    def wait(self) -> float:
        """Seconds that a newcomer would wait until the decoder takes it; 0 while nothing was measured."""
        lately = self._now() - BODY_SECONDS
        coming = [place for place in self._present() if place.joins and not place.in_line]
        soon = [place for place in coming if not place.reads_images or place.came > lately]
        return self._wait_behind((*self._drain.line, *soon))

    @contextlib.contextmanager
    def place(self, *, joins: bool = True) -> Iterator[Place]:
        """A place, at once or never.

        Args:
            joins: Whether the request will be in the line for the decoder.

        Raises:
            ApiError: 503, the server is away, every place is taken, or those before it take too long.
        """
        limits = self._limits
        if not self._is_ready():
            raise unavailable()
        if self.present >= limits.max_concurrent + limits.max_queue:
            raise self._overloaded(self._mean)
        self._check(self.wait, limits.queue_time / SPREAD)
        place = Place(round(self._mean) if joins else 0, self._now(), joins=joins)
        self._places[place] = None
        try:
            yield place
        finally:
            self._drain.given_up(place)  # unless it was answered
            del self._places[place]

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
            self._check(self._wait_behind(self._drain.line), self._limits.queue_time)
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

    def _present(self) -> list[Place]:
        lately = self._now() - BODY_SECONDS
        return [place for place in self._places if place.in_line or place.has_arrived or place.came > lately]

    def _wait_behind(self, before: Sequence[Place]) -> float:
        if len(before) < self._batch or not (rate := self.rate):
            return 0.0
        return (sum(place.tokens for place in before[self._batch :]) + self._mean) / rate

    def _check(self, wait: float, most: float) -> None:
        if wait > most:
            raise self._overloaded((wait - most) * self.rate)

    def _overloaded(self, tokens: float) -> ApiError:
        """The refusal of a request that would have come in after so many tokens."""
        seconds = tokens / self.rate if self.rate else 0.0
        refusal = unavailable("the server is busy; try again in a moment", "overloaded")
        return replace(refusal, retry_after=min(seconds, MAX_RETRY_SECONDS))
