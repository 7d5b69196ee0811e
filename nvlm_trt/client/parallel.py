"""Work on many things, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Thing = TypeVar("Thing")


async def for_each(things: Iterable[Thing], work: Callable[[Thing], Awaitable[None]], concurrency: int) -> None:
    """Work on each thing; the next one is taken when a place is free.

    The first error, or a cancellation, ends what is under way and is raised when that has ended.

    Args:
        things: Read no further ahead than they are worked on.
        work: Done once for each.
        concurrency: Places.
    """
    waiting = iter(things)

    async def place() -> None:
        for thing in waiting:
            await work(thing)

    places = [asyncio.create_task(place()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*places)
    finally:
        for task in places:
            task.cancel()
        await asyncio.gather(*places, return_exceptions=True)
