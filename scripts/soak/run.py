"""One soak, from references to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from nvlm_trt.engine_files import engine_recipe

from .ask import Asker
from .bad import bad_requests
from .cases import make_cases
from .load import MOST_OPEN, Load, Material, Tally
from .references import take_references
from .report import Soaked, told
from .server import Running, found_server, own_server
from .teller import Teller
from .verdict import judge, warm_up_of
from .watch import Sample, Watch

CALLERS: Final = 8
IDLE_SECONDS: Final = 60.0
SAMPLES: Final = 720
"""Of a run at most."""

LEAST_PAUSE: Final = 2.0
"""Seconds from one to the next."""

UNSEEN: Final = (OSError, TimeoutError, aiohttp.ClientError, psutil.Error)
"""How a look at the server fails."""

IDLE: Final = (
    "nvlm_requests_working",
    "nvlm_requests_waiting",
    "nvlm_buffered_bytes",
    "nvlm_kv_running_requests",
    "nvlm_kv_waiting_requests",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a soak is run. Times in seconds.

    Attributes:
        engine_dir: The engine that is served, here for the references too.
        out: Where samples go while it runs.
        duration: Of the load that is judged.
        http: Of a server that runs already; None starts one.
        grpc: Of the same.
        load: Share of the capacity.
        rate: Requests a second instead.
        seed: Of cases, order and times.
        cases: How many there are.
        patience: After which an answer is lost.
        quiet: Whether no progress is shown.
        command: What was called.
    """

    engine_dir: Path
    out: Path
    duration: float
    http: str | None
    grpc: str | None
    load: float
    rate: float | None
    seed: int
    cases: int
    patience: float
    quiet: bool
    command: str


async def soak(plan: Plan) -> Soaked:
    """Load a server for a long time with mixed requests; check every answer; watch memory, descriptors and threads."""
    say = Teller(quiet=plan.quiet)
    recipe = engine_recipe(plan.engine_dir)
    cases = make_cases(plan.seed, plan.cases)
    say("taking references: 0 answers")
    taken = iter(range(1, 2 * len(cases) + 1))
    references, left_out = await asyncio.to_thread(
        take_references,
        plan.engine_dir,
        cases,
        tick=lambda: say(f"taking references: {next(taken)} of {2 * len(cases)} answers"),
    )
    kept = [case for case in cases if case.name in references]
    material = Material(kept, references, bad_requests(plan.seed, max_images=recipe.max_images))
    if plan.http is not None and plan.grpc is not None:
        place: contextlib.AbstractContextManager[Running] = found_server(plan.http, plan.grpc)
    else:
        place = own_server(plan.engine_dir, plan.out / "server.log")
    settings: dict[str, Any] = {
        "command": plan.command,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.machine()}",
        "duration": f"{plan.duration / 60:g} minutes",
        "load": plan.load,
        "seed": plan.seed,
        "callers": CALLERS,
        "most_open": MOST_OPEN,
        "cases": len(kept),
        "left_out": len(left_out),
        "kv_cache_mib": recipe.cpu_engine.kv_cache_mib,
        "vision_cache_mib": recipe.cpu_engine.vision_cache_mib,
    }
    say("starting the server")
    with place as server:
        return await _run(plan, server, material, settings, say)


async def _run(
    plan: Plan, server: Running, material: Material, settings: dict[str, Any], say: Callable[[str], None]
) -> Soaked:
    warm = min(120.0, max(20.0, plan.duration / 20))
    say(f"measuring the capacity ({warm:.0f} s)")
    asker = Asker(server.http, server.grpc, plan.patience)
    warming = Load(asker, material, plan.seed + 1)
    try:
        capacity = await warming.capacity(warm, CALLERS)
        say(f"filling the server ({warm / 2:.0f} s)")
        await warming.capacity(warm / 2, MOST_OPEN)  # what it needs for as many as there may be, it needs from now on
    finally:
        await asker.close()
    rate = plan.rate or plan.load * capacity
    settings |= {"capacity": capacity, "rate": rate, "load": rate / capacity, "warm_up": warm_up_of(plan.duration)}
    before = await wait_idle(server)
    watch, began = Watch(server.pid), time.monotonic()
    samples: list[Sample] = []
    ends = began + plan.duration
    asker = Asker(server.http, server.grpc, plan.patience)
    load = Load(asker, material, plan.seed)
    load.tally.wrong += warming.tally.wrong  # counts, though the times don't
    load.tally.lost += warming.tally.lost

    def tell() -> None:
        tally, last = load.tally, samples[-1] if samples else before
        say(
            f"{max(0.0, ends - time.monotonic()) / 60:.1f} min left, {sum(tally.right.values())} right, "
            f"{tally.failures} failures, memory {last.pss / 1e6:.0f} MB, shm {last.shm / 1e6:.0f} MB, "
            f"{last.fds} descriptors, {last.threads} threads"
        )

    try:
        async with looked_at(_look(watch, asker, samples, load.tally, plan)):
            await load.arrive(rate, ends, tell)
    finally:
        await asker.close()
    say("waiting until the server is idle")
    after = await wait_idle(server)
    checks = judge(samples, load.tally, (before, after), settings["warm_up"], plan.duration)
    return Soaked(settings, samples, load.tally, (before, after), checks, settings["warm_up"], began, asker.turned_away)


@contextlib.asynccontextmanager
async def looked_at(looks: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Looks beside what is done here; what ended them early is raised."""
    looking = asyncio.create_task(looks)
    try:
        yield
    finally:
        looking.cancel()
        (ended,) = await asyncio.gather(looking, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended


async def _look(watch: Watch, asker: Asker, samples: list[Sample], tally: Tally, plan: Plan) -> None:
    """Take samples, and note beside them what became of the requests so far: a run that is killed leaves both."""
    pause = max(LEAST_PAUSE, plan.duration / SAMPLES)
    with (plan.out / "samples.jsonl").open("w", buffering=1) as file:
        while True:
            with contextlib.suppress(*UNSEEN):  # a busy machine, a server that is replaced: the next look is soon
                metrics = await asker.figures()
                sample = await asyncio.to_thread(watch.look, metrics)
                samples.append(sample)
                file.write(json.dumps(asdict(sample)) + "\n")
                (plan.out / "answers.json").write_text(json.dumps(told(tally), indent=1) + "\n")
            await asyncio.sleep(pause)


async def wait_idle(server: Running) -> Sample:
    """The server once nothing is under way and nobody is connected, or after a minute of waiting for that."""
    watch, ends = Watch(server.pid), time.monotonic() + IDLE_SECONDS
    while True:
        asker = Asker(server.http, server.grpc, 30)
        try:
            metrics = await asker.figures()
        finally:
            await asker.close()
        await asyncio.sleep(2)  # figures of the models come with their heartbeats; connections close
        sample = await asyncio.to_thread(watch.look, metrics)
        busy = any(sample.figures.get(name, 1.0) for name in IDLE)
        if time.monotonic() > ends or not busy:
            return sample
