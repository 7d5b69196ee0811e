"""What a load test judges hangs on what its clients saw; the probe among them tells that as it was."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nvlm_trt.gateway.settings import Limits

SCRIPTS = Path(__file__).parents[2] / "scripts"
SLOW_SECONDS = 0.3
GOOD = {
    "full_ttft_p99_s": 1.0,
    "accepted_ttft_p99_s": 2.0,
    "refused_p99_ms": 20.0,
    "refused_without_retry_after": 0,
    "other": 0,
    "recovery_s": 1.0,
    "growth_mb": 10.0,
}


@pytest.fixture(name="probe")
def probe_script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("overload_probe")


@pytest.fixture(name="overload")
def overload_script(probe: ModuleType, load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("overload")


async def stand_in(request: web.Request) -> web.StreamResponse:
    """Refuse, refuse late, answer whole, break a stream off, hang up: by the number of the question."""
    question = (await request.json())["messages"][0]["content"]
    number = int(question.split()[1].rstrip(":"))
    if number == 4:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    if number < 2:
        await asyncio.sleep(SLOW_SECONDS * number)
        return web.json_response({}, status=503, headers={"Retry-After": "7"} if number == 0 else {})
    return web.Response(text="data: {}\n\n" + ("data: [DONE]\n\n" if number == 2 else ""))


def beside_the_stand_in(act: Callable[[str], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", stand_in)
        async with TestServer(app) as server:
            return await act(f"{server.host}:{server.port}")

    return asyncio.run(run())


def test_the_probe_tells_refusals_answers_broken_streams_and_lost_connections_apart(probe: ModuleType) -> None:
    report = beside_the_stand_in(lambda address: probe.probe(address, 20.0, 0.25, 8))
    seen = [(one.status, one.retry_after, one.complete) for one in report.probed]
    assert seen == [(503, 7, False), (503, None, False), (200, None, True), (200, None, False), (0, None, False)]


def test_the_probe_counts_the_time_until_a_refusal(probe: ModuleType) -> None:
    report = beside_the_stand_in(lambda address: probe.probe(address, 20.0, 0.25, 8))
    assert report.probed[1].head >= SLOW_SECONDS
    assert report.lag


def test_the_probe_is_a_program_that_prints_what_it_saw() -> None:
    async def act(address: str) -> Any:
        command = [sys.executable, str(SCRIPTS / "overload_probe.py"), address, "--rate=20", "--seconds=0.1"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        said, _ = await process.communicate()
        return json.loads(said)

    report = beside_the_stand_in(act)
    assert [one["status"] for one in report["probed"]] == [503, 503]


def judged(overload: ModuleType, figures: dict[str, float]) -> set[str]:
    """Names of the aims that are missed."""
    return {name for name, seen, most in overload.judged(figures, Limits()) if not seen <= most}


def test_good_figures_meet_every_aim(overload: ModuleType) -> None:
    assert judged(overload, GOOD) == set()


@pytest.mark.parametrize(
    ("figure", "value", "aim"),
    [
        ("accepted_ttft_p99_s", 4.1, "first token of who came in, p99 s"),
        ("refused_p99_ms", 51.0, "refusal, p99 ms"),
        ("refused_p99_ms", math.nan, "refusal, p99 ms"),
        ("refused_without_retry_after", 1, "refusals without Retry-After"),
        ("other", 1, "neither answered nor refused"),
        ("recovery_s", 5.1, "recovery, s"),
        ("growth_mb", 101.0, "memory growth, MB"),
    ],
)
def test_one_that_is_beyond_its_aim_is_a_miss(overload: ModuleType, figure: str, value: float, aim: str) -> None:
    assert judged(overload, {**GOOD, figure: value}) == {aim}


@pytest.mark.parametrize(("room", "least"), [(8192, 1000), (512, 300)])
def test_a_long_question_has_fewer_characters_than_there_may_be_tokens(
    overload: ModuleType, room: int, least: int
) -> None:
    body = json.loads(overload.Bodies(64).long(room))
    assert least < len(body["messages"][0]["content"]) < room
    assert body["max_tokens"] == 1


STUBBORN = """
import json, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps({"event": "ready", "http": "127.0.0.1:1"}), flush=True)
time.sleep(600)
"""


def test_a_server_that_does_not_stop_is_killed(overload: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    stubborn = [sys.executable, "-c", STUBBORN]
    monkeypatch.setattr(overload.subprocess, "Popen", lambda command, **options: start(stubborn, **options))
    monkeypatch.setattr(overload, "STOP_SECONDS", 0.2)
    with pytest.raises(subprocess.TimeoutExpired), overload.serving(Path("engine"), ()) as (_, server):
        assert server.is_running()
    assert not server.is_running()
