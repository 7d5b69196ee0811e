"""Room is given in the order of coming, and nobody is held up by one that no longer waits."""

from __future__ import annotations

import asyncio
import math

from nvlm_trt.serving.room import Room


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_who_finds_no_room_waits_in_the_order_of_coming():
    async def run() -> None:
        room, inside = Room(3), []

        async def come(name: str, size: int) -> None:
            await room.take(name, size)
            inside.append(name)

        sizes = {"first": 2, "second": 1, "large": 2, "small": 1, "larger than the room": 5, "last": 1}
        tasks = [asyncio.create_task(come(name, size)) for name, size in sizes.items()]
        await settle()
        assert inside == ["first", "second"]
        room.give("second")
        room.give("second")  # it has given back already
        await settle()
        assert inside == ["first", "second"]  # the small one does not overtake the large one
        room.give("first")
        await settle()
        assert inside[2:] == ["large", "small"]
        room.give("large")
        await settle()
        assert inside[4:] == []
        room.give("small")
        await settle()
        assert inside[4:] == ["larger than the room"]
        room.give("larger than the room")
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_who_gives_up_waiting_holds_up_nobody():
    async def run() -> None:
        room = Room(1)
        await room.take("holder", 1)
        front, behind, last = (asyncio.create_task(room.take(name, 1)) for name in ("front", "behind", "last"))
        await settle()
        behind.cancel()
        front.cancel()
        room.give("holder")
        await last
        assert front.cancelled()
        assert behind.cancelled()

    asyncio.run(run())


def test_room_without_an_end_holds_any_number():
    async def run() -> None:
        room = Room(math.inf)
        for number in range(3):
            await room.take(str(number), 1 << 40)

    asyncio.run(run())
