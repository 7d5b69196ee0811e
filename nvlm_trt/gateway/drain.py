"""How fast a busy server works off what was planned: what a newcomer's wait is told by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

MEMORY_SECONDS: Final = 30.0
"""Busy seconds after which what was measured counts for a third: a few answers, and no more than a change of load."""


class Drain:
    """Measures tokens a second, planned tokens of requests that were answered.

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
        self._full = _Rate()
        self._busy = _Rate()
        self._present = 0
        self._since = now()

    @property
    def rate(self) -> float:
        """Planned tokens a second; 0 before the first answer."""
        self._pass_time()
        return self._full.value if self._full.answers >= self._batch else self._busy.value

    def changed(self, present: int) -> None:
        """Note how many requests there are now."""
        self._pass_time()
        self._present = present

    def answered(self, tokens: int) -> None:
        """Note that a request was answered, while it still counts as present."""
        self._pass_time()
        self._busy.add(tokens)
        if self._present >= self._batch:
            self._full.add(tokens)

    def _pass_time(self) -> None:
        now = self._now()
        seconds, self._since = now - self._since, now
        if self._present:
            self._busy.passed(seconds)
        if self._present >= self._batch:
            self._full.passed(seconds)


class _Rate:
    """Tokens over seconds, older ones counting less."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self.answers = 0.0

    @property
    def value(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    def passed(self, seconds: float) -> None:
        kept = math.exp(-seconds / MEMORY_SECONDS)
        self._tokens *= kept
        self.answers *= kept
        self._seconds = self._seconds * kept + seconds

    def add(self, tokens: int) -> None:
        self._tokens += tokens
        self.answers += 1
