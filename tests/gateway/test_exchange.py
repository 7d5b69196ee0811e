"""A request and its answer."""

from __future__ import annotations

import asyncio

from starlette.types import Message

from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.settings import Limits


def test_who_has_an_answer_s_last_byte_is_not_in_its_own_way() -> None:
    """A client that may ask one thing at a time asks the next as soon as it has the end."""
    free: list[str] = []
    seen: list[tuple[str, bool]] = []

    async def send(message: Message) -> None:
        seen.append((message["type"], bool(free)))

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def answer() -> None:
        scope = {"type": "http", "path": "/v1/tiles", "method": "POST", "headers": []}
        exchange = Exchange(scope, receive, send, Limits(), lambda size: None)
        async with exchange.stack:
            exchange.places.callback(free.append, "one")
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            await exchange.send({"type": "http.response.body", "body": b"a", "more_body": True})
            await exchange.send({"type": "http.response.body", "body": b"b"})
        assert free == ["one"]

    asyncio.run(answer())
    assert seen == [("http.response.start", False), ("http.response.body", False), ("http.response.body", True)]


def test_what_is_never_answered_is_released_too() -> None:
    free: list[str] = []

    async def begin() -> None:
        scope = {"type": "http", "path": "/v1/tiles", "method": "POST", "headers": []}
        exchange = Exchange(scope, lambda: None, lambda message: None, Limits(), lambda size: None)  # type: ignore[arg-type, return-value]
        async with exchange.stack:
            exchange.places.callback(free.append, "one")

    asyncio.run(begin())
    assert free == ["one"]
