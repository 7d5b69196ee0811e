"""Clients that hang up, in every phase of a request."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from .ask import PATHS, Asker
from .cases import Case

PHASES: Final = ("while sending", "at once", "before the first event", "amid the stream", "amid a gRPC stream")
EVENT_WAIT: Final = 120.0


async def hang_up(asker: Asker, case: Case, phase: str, chance: random.Random) -> str:
    """Begin a request and end the connection in a phase.

    Returns:
        What became of it: "hung up", "answered before" where the answer was faster, or "turned away".
    """
    if phase == "amid a gRPC stream":
        return await _over_grpc(asker, case, chance)
    host, _, port = asker.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        whole = _request(asker, case, "chat" if chance.random() < 0.3 and phase != "amid the stream" else "chat stream")
        sent = whole[: chance.randrange(1, len(whole))] if phase == "while sending" else whole
        writer.write(sent)
        await writer.drain()
        if phase == "before the first event":
            await asyncio.sleep(chance.uniform(0.002, 0.5))
            return "answered before" if reader.at_eof() else "hung up"
        if phase == "amid the stream":
            for _ in range(chance.randint(1, 12)):
                try:
                    line = await asyncio.wait_for(reader.readuntil(b"\n\n"), EVENT_WAIT)
                except asyncio.IncompleteReadError:
                    return "answered before"
                if line.startswith(b"HTTP/1.1 503"):
                    return "turned away"
                if b"[DONE]" in line:
                    return "answered before"
        return "hung up"
    finally:
        if chance.random() < 0.5:
            writer.transport.abort()  # a reset
        else:
            writer.close()


def _request(asker: Asker, case: Case, way: str) -> bytes:
    body = asker.body(case, way)
    head = f"POST {PATHS[way]} HTTP/1.1\r\nHost: {asker.http}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _over_grpc(asker: Asker, case: Case, chance: random.Random) -> str:
    async with asker.client.stream(
        case.question, images=case.images, history=case.history, options=case.options
    ) as stream:
        if chance.random() < 0.5:
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            return "hung up"
        left = chance.randint(1, 6)
        async for _ in stream:
            left -= 1
            if not left:
                return "hung up"
    return "answered before"
