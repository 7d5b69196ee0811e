"""How many may come in."""

from __future__ import annotations

import asyncio
import contextlib
import math
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
        prompt_tokens: Those of its prompt; 0 until it is planned.
        worked_off: Of a stream, what its client has seen done: the prompt and the texts that came.
        answered: Whether the server is done with it: nobody waits for it then, though its answer may be on its way.
    """

    __slots__ = ("answered", "prompt_tokens", "tokens", "worked_off")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.prompt_tokens = 0
        self.worked_off = 0
        self.answered = False

    def text_came(self) -> None:
        """Note that a text of its stream came: about a token."""
        self.worked_off = (self.worked_off or self.prompt_tokens) + 1


class Admission:
    """Places for requests: some that the server works on, some that wait, no more than it answers in time.

    How long a newcomer would wait is told by the planned tokens of those before it and by how fast such tokens were
    worked off (`nvlm_trt.gateway.drain`). Those of the decoder's batch are served, so that nobody waits behind them but
    for one of their places.

    Args:
        limits: How many.
        batch: Requests that the decoder works on at once; None for as many as may be worked on.
        now: The clock, in seconds.
        is_ready: Whether the server takes requests.
        is_ending: Whether it will not take any again.

    Attributes:
        working: Requests that the server works on.
        buffered: Bytes of their bodies.
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
        self._batch = batch or limits.max_concurrent
        self._drain = Drain(self._batch, now)
        self._places: dict[Place, None] = {}  # in the order of coming
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
        unanswered = [place.tokens for place in self._places if not place.answered]
        if len(unanswered) < self._batch or not (rate := self.rate):
            return 0.0
        return (sum(unanswered[self._batch :]) + self._mean) / rate

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
        late = self.wait - limits.queue_time / SPREAD
        if late > 0:
            raise self._overloaded(late * self.rate)
        place = Place(round(self._mean))
        self._places[place] = None
        self._note_change()
        try:
            yield place
        finally:
            if place.worked_off and not place.answered:
                # given up half-way: without this, clients that hang up would make the server look slow
                self._drain.answered(place.worked_off)
            del self._places[place]
            self._note_change()

    def plan(self, place: Place, prompt_tokens: int, answer_tokens: int) -> None:
        """Note what a request will take.

        Raises:
            ApiError: 503, together with the others it takes more than there may be.
        """
        place.prompt_tokens = prompt_tokens
        place.tokens = tokens = prompt_tokens + answer_tokens
        self._plans += 1
        self._mean += (tokens - self._mean) * max(MEAN_SHARE, 1 / self._plans)
        excess = self.planned - self._limits.max_planned
        if excess > 0 and self.present > 1:
            raise self._overloaded(excess)

    def answered(self, place: Place) -> None:
        """Note that a request was answered whole."""
        self._drain.answered(place.tokens)
        place.answered = True
        self._note_change()

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

    def _note_change(self) -> None:
        self._drain.changed(sum(not place.answered for place in self._places))

    def _overloaded(self, tokens: float) -> ApiError:
        """The refusal of a request that would have come in after so many tokens."""
        seconds = tokens / self.rate if self.rate else 0.0
        refusal = unavailable("the server is busy; try again in a moment", "overloaded")
        return replace(refusal, retry_after=min(max(1, math.ceil(seconds)), MAX_RETRY_SECONDS))
