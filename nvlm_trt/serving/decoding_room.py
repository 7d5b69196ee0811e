"""Bounds the memory that images take while they are read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS: Final = 0.05
"""How often one who waits looks whether it still has to."""


class DecodingRoom:
    """Bytes that threads may hold at once, given in the order of asking.

    Args:
        size: Bytes at most; a holder of more is let in alone.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int, watch: Callable[[], None]) -> Iterator[None]:
        """Wait until there is room, and hold it for as long as the context lasts.

        Args:
            size: Bytes; who asks for none waits for nobody.
            watch: Called now and then while it waits; what it raises ends that.
        """
        if size:
            self._enter(size, watch)
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()

    def _enter(self, size: int, watch: Callable[[], None]) -> None:
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                while self._queue[0] is not place or (self._held and self._held + size > self._size):
                    self._changed.wait(LOOK_SECONDS)
                    watch()
                self._held += size
            finally:
                self._queue.remove(place)
                self._changed.notify_all()
