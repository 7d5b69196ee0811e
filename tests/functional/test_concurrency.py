"""Two hundred requests at once, some bad, some given up: every good one is exact, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from nvlm_trt.client import AsyncNvlmClient, Options
from nvlm_trt.errors import RequestError

REQUESTS = 200
KINDS = 20


def shared_memory() -> int:
    """Bytes of the shared memory of this process's servers."""
    return sum(file.stat().st_size for file in Path("/dev/shm").glob(f"nvlm_trt_{os.getpid()}_*"))


def test_mixed_requests_at_once(server, jpeg):
    image = jpeg("chelsea")
    asked = [(f"Question {kind}", [image] if kind % 4 == 0 else [], 5 + 2 * kind) for kind in range(KINDS)]

    async def run() -> tuple[Counter[str], Counter[str], int, int]:
        async with AsyncNvlmClient(server.grpc_url, idle_timeout=45) as client:
            expected = {}
            for prompt, images, limit in asked:
                answer = await client.generate(prompt, images=images, options=Options(max_tokens=limit))
                expected[prompt] = answer.text

            async def one(number: int) -> str:
                prompt, images, limit = asked[number % KINDS]
                options = Options(max_tokens=limit)
                if number % 10 == 3:
                    with pytest.raises(RequestError):
                        await client.generate(prompt, options=Options(max_tokens=100_000))
                    return "refused"
                if number % 10 == 7:
                    async with client.stream(prompt, options=Options(max_tokens=400, min_tokens=400)) as stream:
                        await anext(aiter(stream))
                    return "cancelled"
                if number % 2:
                    stream = client.stream(prompt, images=images, options=options)
                    text = "".join([piece async for piece in stream])
                else:
                    text = (await client.generate(prompt, images=images, options=options)).text
                return "exact" if text == expected[prompt] else f"wrong: {text!r} for {expected[prompt]!r}"

            first = Counter(await asyncio.gather(*(one(number) for number in range(REQUESTS))))
            memory, shared = memory_of(server.process.pid), shared_memory()
            second = Counter(await asyncio.gather(*(one(number) for number in range(REQUESTS))))
            return first, second, memory_of(server.process.pid) - memory, shared_memory() - shared

    first, second, memory_growth, shared_growth = asyncio.run(run())
    assert first == second == {"exact": REQUESTS - 40, "refused": 20, "cancelled": 20}
    assert memory_growth < 100 << 20
    assert shared_growth < 64 << 20
    assert idle(server)


def memory_of(pid: int) -> int:
    server = psutil.Process(pid)
    return sum(process.memory_info().rss for process in (server, *server.children()))


def idle(server) -> bool:
    deadline = time.monotonic() + 5
    while server.process.active_requests() and time.monotonic() < deadline:
        time.sleep(0.05)
    return server.process.active_requests() == 0
