"""Room for the pixels of requests that are with the vision encoder: who finds none waits, and can give up waiting."""

from __future__ import annotations

import asyncio


class Room:
    """Bytes that may be held at once. Belongs to one event loop.

    Args:
        size: Bytes at most, `math.inf` for any number; a holder of more is let in alone.
    """

    def __init__(self, size: float) -> None:
        self._size = size
        self._held: dict[str, int] = {}
        self._in_front = asyncio.Lock()
        self._given = asyncio.Event()

    async def take(self, name: str, size: int) -> None:
        """Wait until there is room, in the order of coming; being cancelled gives the place in the queue up.

        Args:
            name: Of the holder, which holds nothing yet.
            size: Bytes.
        """
        async with self._in_front:  # its waiters are let in in their order
            while self._held and sum(self._held.values()) + size > self._size:
                self._given.clear()
                await self._given.wait()
            self._held[name] = size

    def give(self, name: str) -> None:
        """Give back what this one holds; nothing to do where it holds nothing."""
        if self._held.pop(name, None) is not None:
            self._given.set()
