"""For how long something that should move has not moved, fair to a machine that itself stood still."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

LONGEST_LOOK: Final = 1.0
"""Seconds that one look counts at most: the watched had no more time than the watcher."""


class Silence(Generic[Key]):
    """How long marks have stayed the same, in seconds during which this process ran, too.

    A machine that was suspended, stopped or starved for half a minute has starved everybody alike.

    Args:
        clock: Seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self._marks: dict[Key, tuple[object, float]] = {}

    def of(self, marks: Mapping[Key, object]) -> dict[Key, float]:
        """Look: the seconds since each mark has changed; call it several times a second."""
        now = self._clock()
        step, self._looked = min(now - self._looked, LONGEST_LOOK), now
        quiet = {}
        for key, mark in marks.items():
            last = self._marks.get(key)
            quiet[key] = last[1] + step if last is not None and last[0] == mark else 0.0
        self._marks = {key: (marks[key], seconds) for key, seconds in quiet.items()}
        return quiet
