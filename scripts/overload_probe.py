"""Ask a server again and again, a connection each time, and tell how soon its answer's head came.

``python scripts/overload_probe.py HOST:PORT --rate 10 --seconds 60`` is a program of its own, beside the one that makes
a load (`overload.py`): that one reads all the streams and is late where the cores are taken, so that its times are its
own as much as the server's. This one does next to nothing. It prints one JSON object, see `Report`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from typing import Final

PRIORITY: Final = -10
"""Niceness, where it may be had: a client's machine is another than the server's, and has cores of its own."""

PATIENCE_SECONDS: Final = 120.0
"""For an answer; one that takes longer counts as none."""

LAG_SECONDS: Final = 0.02
RETRY_AFTER: Final = re.compile(rb"\r\nretry-after: *(\d+)\r\n", re.IGNORECASE)
REQUEST: Final = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    "Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
)


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of a request.

    Attributes:
        status: Of the answer; 0 where there was none.
        head: Seconds from the connection's beginning to the answer's head.
        retry_after: What the head says of it, in seconds.
        complete: Whether a stream came to its end.
    """

    status: int
    head: float
    retry_after: int | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What this program prints.

    Attributes:
        probed: Each request.
        lag: Seconds by which this program itself was late, which no time of its own can be better than.
    """

    probed: list[Probed]
    lag: list[float]


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--answer-tokens", type=int, default=64)
    asked = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    print(json.dumps(asdict(asyncio.run(probe(asked.address, asked.rate, asked.seconds, asked.answer_tokens)))))


async def probe(address: str, rate: float, seconds: float, answer_tokens: int) -> Report:
    """Ask at a steady pace, whether the others are answered or not."""
    lag: list[float] = []
    watching = asyncio.create_task(note_lag(lag))
    begin = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(_ask(address, number, answer_tokens)))
    probed = await asyncio.gather(*tasks)
    watching.cancel()
    return Report(probed, lag)


async def _ask(address: str, number: int, answer_tokens: int) -> Probed:
    content = f"Probe {number}: what is it?"
    fields = {"model": "nvlm", "stream": True, "max_tokens": answer_tokens, "ignore_eos": True}
    body = json.dumps({**fields, "messages": [{"role": "user", "content": content}]})
    host, _, port = address.rpartition(":")
    began = time.perf_counter()
    head, rest = b"", b""
    writer, passed = None, None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(REQUEST.format(host=address, length=len(body), body=body).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            passed = time.perf_counter() - began
            while piece := await reader.read(1 << 16):
                rest = (rest + piece)[-64:]
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        pass
    finally:
        if writer is not None:
            writer.close()
    retry_after = RETRY_AFTER.search(head)
    return Probed(
        status=int(head.split(b" ", 2)[1]) if head else 0,
        head=time.perf_counter() - began if passed is None else passed,
        retry_after=int(retry_after[1]) if retry_after else None,
        complete=b"data: [DONE]" in rest,
    )


async def note_lag(late: list[float]) -> None:
    """Add the seconds by which this process is late, until it is cancelled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_SECONDS)
        late.append(time.perf_counter() - began - LAG_SECONDS)


if __name__ == "__main__":
    main()
