"""A server that is asked for more than it can do: what becomes of those who come in, and how the others are refused.

``python scripts/overload.py ENGINE_DIR [--seconds 60] [--json FILE]`` starts the server of an engine directory, finds
out how many requests a second it can answer (closed loop), offers four times as many for a minute (open loop, arrivals
by chance), and then looks how soon a lone client is answered as fast as before. The objective of who comes in: the
first token within the operator's `queue_time` and what it takes on a server that is full but has no queue. Ends with 1
where an aim is missed.

How soon the excess is refused is told by a client of its own, `overload_probe.py`: a few of the requests that are
offered come from there, each over a connection of its own, and its p99 is what is judged. The program that offers the
others reads all the streams on the server's own cores and is late by itself (`own_lag_p99_ms`); the refusals that it
saw are among the figures, too (`crowd_refused_*`). The server runs in a session of its own, as a service does: Linux
shares the cores between sessions, and clients are not part of a service.

What the server holds is looked at from when it has all that it keeps for good: long questions are asked first, until
its KV cache was written once and it grows no more (`filled_mb`).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import math
import random
import statistics
import string
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import skimage.data
from overload_probe import Probed, Report, note_lag
from PIL import Image

from nvlm_trt.engine_files import engine_recipe
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.recipe import BuildRecipe

REFUSED_MS: Final = 50.0
RECOVERED_SECONDS: Final = 5.0
GROWTH_MB: Final = 100.0
SLOWER: Final = 2.0
"""A lone client is answered as before when its first token takes no more than so many times what nine of ten took at
first: that much varies on an idle machine."""

IDLE_ROUNDS: Final = 20
FILL_ROUNDS: Final = 40
FILL_QUESTIONS: Final = 16
SETTLED_MB: Final = 2.0
"""A round of so many long questions that takes no more than that has found the KV cache full. One that is not quite
full then makes the growth that is judged no smaller."""

PROBES_PER_SECOND: Final = 10.0
PROBE_SHARE: Final = 0.5
"""Of the requests that are offered, at most."""

STOP_SECONDS: Final = 60.0
"""A server that has not ended that long after it was told to is killed."""

PROBE: Final = Path(__file__).with_name("overload_probe.py")
SHORT: Final = 8
LONG: Final = 1000
"""Characters of a question that fills the KV cache, where a prompt may have as many tokens."""

LONG_ROOM: Final = 200
"""Tokens that are left for its template."""

REFUSALS: Final = (429, 503)
IMAGE_SHARE: Final = 0.25
CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request; times in seconds since it was sent."""

    status: int
    head: float
    first: float | None
    total: float
    retry_after: int | None
    complete: bool


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--capacity-seconds", type=float, default=15.0, help="of finding out what the server can do")
    parser.add_argument("--times", type=float, default=4.0, help="the capacity that are offered")
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--limit", action="append", default=[], help="of the gateway, NAME=VALUE; repeatable")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    asked = parser.parse_args()
    recipe = engine_recipe(asked.engine_dir)
    limits = Limits.of(recipe).changed(asked.limit)
    with serving(asked.engine_dir, asked.limit) as (address, server):
        figures = asyncio.run(measure(address, server, recipe, limits, asked))
    checks = judged(figures, limits)
    for name, value in figures.items():
        print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")
    for name, seen, most in checks:
        print(f"{'ok  ' if seen <= most else 'MISS'} {name}: {seen:.4g}, aim {most:.4g}")
    passed = all(seen <= most for _, seen, most in checks)
    if asked.json:
        asked.json.write_text(json.dumps({**figures, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


def judged(figures: dict[str, Any], limits: Limits) -> list[tuple[str, float, float]]:
    """What was aimed at: a name, the value seen, the largest that is good."""
    objective = limits.queue_time + figures["full_ttft_p99_s"]
    return [
        ("first token of who came in, p99 s", figures["accepted_ttft_p99_s"], objective),
        ("refusal, p99 ms", figures["refused_p99_ms"], REFUSED_MS),
        ("refusals without Retry-After", figures["refused_without_retry_after"], 0),
        ("neither answered nor refused", figures["other"], 0),
        ("recovery, s", figures["recovery_s"], RECOVERED_SECONDS),
        ("memory growth, MB", figures["growth_mb"], GROWTH_MB),
    ]


@contextmanager
def serving(engine_dir: Path, limits: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """The server as a process of its own: ``host:port`` and the process."""
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "serve", str(engine_dir), "--json"]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *(f"--limit={one}" for one in limits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            event = json.loads(process.stdout.readline() or "{}")
            if event.get("event") != "ready":
                raise SystemExit(f"the server did not start: {event}")
            yield event["http"], psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # what it has started ends with it
                raise


async def measure(
    address: str, server: psutil.Process, recipe: BuildRecipe, limits: Limits, asked: argparse.Namespace
) -> dict[str, Any]:
    """All figures."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=10)
    async with aiohttp.ClientSession(f"http://{address}", connector=connector) as session:
        bodies, batch = Bodies(asked.answer_tokens), recipe.max_batch_size
        started = memory(server)
        await fill(session, bodies, server, recipe)
        await closed_loop(session, bodies, batch, 2.0)  # warm
        idle = [one.first for one in [await ask(session, bodies.short()) for _ in range(IDLE_ROUNDS)] if one.first]
        full = await closed_loop(session, bodies, batch, asked.capacity_seconds)
        if not full:
            raise SystemExit("nothing was answered while the capacity was measured; give it more --capacity-seconds")
        before = memory(server)
        rate = len(full) / asked.capacity_seconds * asked.times
        probes = min(PROBES_PER_SECOND, rate * PROBE_SHARE)
        async with peak_memory(server) as peak, own_lag() as lag:
            probing = asyncio.create_task(probe(address, probes, asked))
            tasks = await open_loop(session, bodies, rate - probes, asked.seconds)
            recovery, recovered_ttft = await recovered(session, bodies.short(), quantile(idle, 90))
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            report = await probing
        outcomes = [one for one in ended if isinstance(one, Outcome)]
        taken = [one for one in outcomes if one.status == 200 and one.complete and one.first is not None]
        refused = [one for one in outcomes if one.status in REFUSALS]
        probed_refused = [one for one in report.probed if one.status in REFUSALS]
        probed_taken = [one for one in report.probed if one.status == 200 and one.complete]
        hints = [one.retry_after for one in refused] + [one.retry_after for one in probed_refused]
        offered = len(tasks) + len(report.probed)
        accepted = len(taken) + len(probed_taken)
        await asyncio.sleep(1)
        firsts = [one.first for one in taken if one.first is not None]
        return {
            "capacity_per_s": len(full) / asked.capacity_seconds,
            "offered_per_s": offered / asked.seconds,
            "idle_ttft_p50_s": statistics.median(idle),
            "full_ttft_p99_s": quantile([one.first for one in full if one.first], 99),
            "full_total_p50_s": quantile([one.total for one in full], 50),
            "queue_time_s": limits.queue_time,
            "accepted": accepted,
            "accepted_per_s": accepted / asked.seconds,
            "accepted_ttft_p50_s": quantile(firsts, 50),
            "accepted_ttft_p99_s": quantile(firsts, 99),
            "accepted_total_p50_s": quantile([one.total for one in taken], 50),
            "accepted_total_p99_s": quantile([one.total for one in taken], 99),
            "refused": len(hints),
            "probed_refused": len(probed_refused),
            "refused_p50_ms": quantile([one.head for one in probed_refused], 50) * 1000,
            "refused_p99_ms": quantile([one.head for one in probed_refused], 99) * 1000,
            "probe_lag_p99_ms": quantile(report.lag, 99) * 1000,
            "crowd_refused_p50_ms": quantile([one.head for one in refused], 50) * 1000,
            "crowd_refused_p99_ms": quantile([one.head for one in refused], 99) * 1000,
            "own_lag_p99_ms": quantile(lag, 99) * 1000,
            "refused_without_retry_after": sum(hint is None for hint in hints),
            "retry_after_s": sorted({hint for hint in hints if hint is not None}),
            "other": offered - accepted - len(hints),
            "recovery_s": recovery,
            "recovered_ttft_s": recovered_ttft,
            "filled_mb": before - started,
            "peak_growth_mb": peak[0] - before,
            "growth_mb": memory(server) - before,
        }


async def fill(session: aiohttp.ClientSession, bodies: Bodies, server: psutil.Process, recipe: BuildRecipe) -> None:
    """Ask long questions until the server grows no more: what it keeps for good it takes when it is first used.

    Never a whole batch of them, which would tell the server (`nvlm_trt.gateway.drain`) a speed that holds for long
    questions with short answers alone.
    """
    places = asyncio.Semaphore(max(1, recipe.max_batch_size // 2))

    async def question() -> int:
        async with places:
            return (await ask(session, bodies.long(recipe.max_input_len))).status

    for _ in range(FILL_ROUNDS):
        before = memory(server)
        refused = set(await asyncio.gather(*(question() for _ in range(FILL_QUESTIONS)))) - {200}
        if refused:
            raise SystemExit(f"a long question was answered with {refused.pop()}, so that the KV cache is not filled")
        if memory(server) - before < SETTLED_MB:
            return


async def probe(address: str, rate: float, asked: argparse.Namespace) -> Report:
    """What the client saw that is a program, and for the scheduler a session, of its own."""
    options = [f"--rate={rate}", f"--seconds={asked.seconds}", f"--answer-tokens={asked.answer_tokens}"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROBE), address, *options, stdout=subprocess.PIPE, start_new_session=True
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{PROBE.name} ended with {process.returncode}")
    report = json.loads(said)
    return Report([Probed(**one) for one in report["probed"]], report["lag"])


async def open_loop(
    session: aiohttp.ClientSession, bodies: Bodies, rate: float, seconds: float
) -> list[asyncio.Task[Outcome]]:
    """Requests that come whether the others are answered or not; many are still under way when this returns."""
    tasks, chance = [], random.Random(1)
    began = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(session, bodies.next())))
    await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
    return tasks


async def closed_loop(session: aiohttp.ClientSession, bodies: Bodies, clients: int, seconds: float) -> list[Outcome]:
    """Requests of so many clients that ask again when they are answered."""
    end = time.perf_counter() + seconds
    done: list[Outcome] = []

    async def client() -> None:
        while time.perf_counter() < end:
            outcome = await ask(session, bodies.next())
            if outcome.status == 200 and time.perf_counter() < end:
                done.append(outcome)

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


async def recovered(session: aiohttp.ClientSession, body: bytes, idle: float) -> tuple[float, float]:
    """Seconds until a lone client is answered as before, and the time to its first token then."""
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < 10 * RECOVERED_SECONDS:
        outcome = await ask(session, body)
        if outcome.first is not None and outcome.first <= SLOWER * idle:
            return time.perf_counter() - began, outcome.first
        await asyncio.sleep(0.05)
    return passed, float("inf")


async def ask(session: aiohttp.ClientSession, body: bytes) -> Outcome:
    """Ask for a stream and read it."""
    began = time.perf_counter()
    first, complete = None, False
    async with session.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as answer:
        head = time.perf_counter() - began
        async for line in answer.content:
            if first is None and b'"delta":{"content"' in line:
                first = time.perf_counter() - began
            complete = complete or line.startswith(b"data: [DONE]")
        total = time.perf_counter() - began
        hint = answer.headers.get("Retry-After")
        return Outcome(answer.status, head, first, total, int(hint) if hint else None, complete)


class Bodies:
    """Requests, three of four about nothing but text, the others about one of a few small pictures."""

    def __init__(self, answer_tokens: int) -> None:
        self._tokens = answer_tokens
        self._chance = random.Random(0)
        self._numbers = itertools.count()
        crops = [(0, 0), (100, 50), (200, 100), (50, 200)]
        self._pictures = [_picture(x, y) for x, y in crops]

    def text(self) -> bytes:
        """A question that was not asked before."""
        return self._body(f"Question {next(self._numbers)}: what is it?", self._tokens)

    def short(self) -> bytes:
        """One that is answered by a few tokens."""
        return self._body(f"Question {next(self._numbers)}: what is it?", SHORT)

    def long(self, length: int) -> bytes:
        """One of fewer characters, which take a token each at most, than so many; answered by one token."""
        letters = "".join(self._chance.choices(string.ascii_letters, k=max(1, min(LONG, length - LONG_ROOM))))
        return self._body(f"Question {next(self._numbers)}: what is {letters}?", 1)

    def next(self) -> bytes:
        """A question, or one about a picture."""
        if self._chance.random() >= IMAGE_SHARE:
            return self.text()
        picture = {"type": "image_url", "image_url": {"url": self._chance.choice(self._pictures)}}
        question = {"type": "text", "text": f"Question {next(self._numbers)}: what is it?"}
        return self._body([picture, question], self._tokens)

    def _body(self, content: object, tokens: int) -> bytes:
        message = {"role": "user", "content": content}
        fields = {"model": "nvlm", "stream": True, "max_tokens": tokens, "ignore_eos": True}
        return json.dumps({**fields, "messages": [message]}).encode()


def _picture(x: int, y: int) -> str:
    file = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).crop((x, y, x + 200, y + 150)).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def memory(server: psutil.Process) -> float:
    """Megabytes that the server's processes hold together."""
    total = 0
    for process in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


@asynccontextmanager
async def peak_memory(server: psutil.Process) -> AsyncIterator[list[float]]:
    """The most that they held, looked at twice a second; complete when the context ends."""
    peak = [memory(server)]

    async def watch() -> None:
        while True:
            peak[0] = max(peak[0], memory(server))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


@asynccontextmanager
async def own_lag() -> AsyncIterator[list[float]]:
    """Seconds by which this process itself is late, which no time that it measures can be better than."""
    late: list[float] = []
    watching = asyncio.create_task(note_lag(late))
    try:
        yield late
    finally:
        watching.cancel()


def quantile(values: Sequence[float], percent: int) -> float:
    """A percentile; NaN, which meets no aim, where there is nothing."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else math.nan


if __name__ == "__main__":
    sys.exit(main())
