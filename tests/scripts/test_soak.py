"""A soak's verdict hangs on what was measured, and its requests on their seed alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from nvlm_trt.gateway.conversation import conversation_of
from nvlm_trt.gateway.schema import ChatRequest
from scripts.soak import run
from scripts.soak.ask import WAYS, Asker, LostError, body_of
from scripts.soak.bad import Bad, bad_requests
from scripts.soak.cases import Case, make_cases
from scripts.soak.load import Load, Material, Tally
from scripts.soak.references import Expected
from scripts.soak.report import Soaked, markdown, summary
from scripts.soak.verdict import growth, judge, slope_per_hour, warm_up_of
from scripts.soak.watch import ProcessFigures, Sample, read_figures

MB = 1_000_000
RIGHT = Expected("four", "stop", 7, 2)
WHOLE = {
    "choices": [{"message": {"content": "four"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}
IDLE_FIGURES = {
    "nvlm_requests_working": 0.0,
    "nvlm_requests_waiting": 0.0,
    "nvlm_buffered_bytes": 0.0,
    "nvlm_kv_running_requests": 0.0,
    "nvlm_kv_waiting_requests": 0.0,
    "nvlm_kv_blocks": 100.0,
    "nvlm_kv_free_blocks": 100.0,
}


def moment(at: float, *, mb: float = 500, shm_mb: float = 10, fds: int = 60, threads: int = 70, pid: int = 1) -> Sample:
    one = ProcessFigures(pid, int(mb * MB), int(mb * MB), fds, threads)
    return Sample(at, {"gateway": one}, int(shm_mb * MB), dict(IDLE_FIGURES), 1.0)


def failed(samples: list[Sample], *, tally: Tally | None = None, after: Sample | None = None) -> set[str]:
    """Names of the checks that a soak fails."""
    checks = judge(samples, tally or Tally(), (moment(0), after or moment(100)), warm_up=20, duration=100)
    return {check.name for check in checks if not check.passed}


FLAT = [moment(at) for at in range(100)]


def test_a_server_that_stays_as_it_was_passes() -> None:
    assert failed(FLAT) == set()


def test_memory_that_grows_after_the_warm_up_fails() -> None:
    assert failed([moment(at, mb=500 + 2 * at) for at in range(100)]) == {"growth of memory (PSS of all processes)"}
    assert failed([moment(at, shm_mb=2 * at) for at in range(100)]) == {"growth of shared memory"}


def test_memory_that_grows_during_the_warm_up_is_no_fault() -> None:
    assert failed([moment(at, mb=min(500, 25 * at)) for at in range(100)]) == set()


def test_one_high_sample_at_the_end_is_no_growth() -> None:
    samples = [*FLAT[:-1], moment(99, mb=2000)]
    assert growth(samples, 20, lambda one: one.pss) == 0


def test_the_slope_is_that_of_a_line() -> None:
    samples = [moment(at, mb=500 + at) for at in range(100)]
    assert slope_per_hour(samples, 20, lambda one: one.pss) == pytest.approx(3600 * MB)


def test_the_warm_up_is_a_tenth_of_the_run_within_bounds() -> None:
    assert [warm_up_of(seconds) for seconds in (20, 100, 600, 3600, 86_400)] == [10, 30, 60, 360, 600]


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("nvlm_requests_working", 1.0, "requests left in the gateway"),
        ("nvlm_requests_waiting", 1.0, "requests left in the gateway"),
        ("nvlm_buffered_bytes", 9.0, "bytes left in the gateway's buffers"),
        ("nvlm_kv_running_requests", 1.0, "requests left in the decoder"),
        ("nvlm_kv_free_blocks", 99.0, "KV blocks that nobody gave back"),
        ("nvlm_server_restarts_total", 1.0, "restarts"),
    ],
)
def test_what_is_left_behind_fails(name: str, value: float, check: str) -> None:
    after = dataclasses.replace(moment(100), figures={**IDLE_FIGURES, name: value})
    assert failed(FLAT, after=after) == {check}


def test_what_the_server_does_not_show_at_the_end_fails() -> None:
    assert failed(FLAT, after=dataclasses.replace(moment(100), figures={})) == {
        "requests left in the gateway",
        "bytes left in the gateway's buffers",
        "requests left in the decoder",
        "KV blocks that nobody gave back",
    }


def test_a_server_that_was_not_looked_at_to_the_end_fails() -> None:
    assert failed(FLAT[:71]) == set()
    assert failed(FLAT[:65]) == {"time at the end without a look"}
    assert "growth of shared memory" in failed(FLAT[:10])
    assert "time at the end without a look" in failed([])


def test_a_soak_without_a_sample_has_a_report() -> None:
    tally, idle = Tally(), (moment(0), moment(100))
    settings = dict.fromkeys(["duration", "command", "when", "machine", "callers", "cases", "left_out"], "")
    settings |= dict.fromkeys(["most_open", "kv_cache_mib", "vision_cache_mib"], "")
    settings |= dict.fromkeys(["capacity", "rate", "load", "warm_up"], 1.0)
    soaked = Soaked(settings, [], tally, idle, judge([], tally, idle, 20, 100), 20, 0.0, 0)
    assert "FAILED" in markdown(summary(soaked)).splitlines()[0]


class Moments:
    """A server that is looked at: metrics, or an error in place of them."""

    def __init__(self, *outcomes: str | Exception) -> None:
        self._outcomes = iter(outcomes)
        self.seen = asyncio.Event()

    async def figures(self) -> str:
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def look(self, metrics: str) -> Sample:
        if not metrics:
            raise psutil.NoSuchProcess(1)
        self.seen.set()
        return moment(0)


@pytest.fixture(name="looks")
def looks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Moments], list[Sample]]:
    """What is seen of a server until something is, or its watching ends."""
    monkeypatch.setattr(run, "LEAST_PAUSE", 0.0)
    plan = SimpleNamespace(duration=0.0, out=tmp_path)

    def take(server: Moments) -> list[Sample]:
        samples: list[Sample] = []

        async def watch() -> None:
            async with run.looked_at(run._look(server, server, samples, Tally(), plan)):  # type: ignore[arg-type]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(server.seen.wait(), 1.0)

        asyncio.run(watch())
        return samples

    return take


def test_a_look_that_fails_is_followed_by_another(looks: Callable[[Moments], list[Sample]]) -> None:
    failures = [aiohttp.ServerDisconnectedError(), TimeoutError(), ConnectionError(), ""]
    assert len(looks(Moments(*failures, *["metrics"] * 10_000))) >= 1


def test_what_ends_the_looking_ends_the_soak(looks: Callable[[Moments], list[Sample]]) -> None:
    with pytest.raises(ValueError, match="no metrics"):
        looks(Moments(ValueError("no metrics")))


def test_descriptors_threads_and_processes_are_counted() -> None:
    assert failed(FLAT, after=moment(100, fds=77)) == {"file descriptors left"}
    assert failed(FLAT, after=moment(100, threads=87)) == {"threads left"}
    assert failed(FLAT, after=moment(100, pid=2)) == {"processes that came or went"}


def test_restarts_are_summed_over_their_reasons() -> None:
    text = 'nvlm_server_restarts_total{reason="hung"} 2\nnvlm_server_restarts_total{reason="dead"} 1\nother 5\n'
    assert read_figures(text) == {"nvlm_server_restarts_total": 3}


class StandIn:
    """Answers as it is told."""

    def __init__(self, answer: Expected | LostError, refusal: tuple[int, str] = (400, "")) -> None:
        self._answer = answer
        self._refusal = refusal

    async def ask(self, case: Case, way: str) -> Expected:
        if isinstance(self._answer, LostError):
            raise self._answer
        return self._answer

    async def refused(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        return self._refusal


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make_cases(1, 12)


def tally_of(stand_in: StandIn, cases: list[Case]) -> Tally:
    """What a load of twelve callers counts."""
    material = Material(cases, {case.name: RIGHT for case in cases}, ())
    load = Load(stand_in, material, seed=1)  # type: ignore[arg-type]
    asyncio.run(load.capacity(0.0, 12))
    return load.tally


def test_right_wrong_and_lost_answers_are_told_apart(cases: list[Case]) -> None:
    assert sum(tally_of(StandIn(RIGHT), cases).right.values()) == 12
    assert len(tally_of(StandIn(dataclasses.replace(RIGHT, text="five")), cases).wrong) == 12
    assert len(tally_of(StandIn(dataclasses.replace(RIGHT, num_output_tokens=3)), cases).wrong) == 12
    assert len(tally_of(StandIn(LostError("status 503")), cases).lost) == 12


@pytest.mark.parametrize(("refusal", "right"), [((400, '{"code": "a"}'), 1), ((400, ""), 0), ((500, '"a"'), 0)])
def test_a_refusal_needs_its_status_and_its_code(refusal: tuple[int, str], right: int) -> None:
    load = Load(StandIn(RIGHT, refusal), Material((), {}, ()), seed=1)  # type: ignore[arg-type]
    asyncio.run(load._refused(Bad("one", "/", b"", {}, 400, "a")))
    assert (sum(load.tally.refused.values()), len(load.tally.misjudged)) == (right, 1 - right)


def test_who_is_told_to_come_again_does_and_is_counted(cases: list[Case]) -> None:
    answers = iter([web.Response(status=503, headers={"Retry-After": "0"}), web.json_response(WHOLE)])
    assert asyncio.run(asked_of(answers, cases[0])) == (RIGHT, 1)


def test_an_error_without_a_time_to_come_again_is_a_lost_answer(cases: list[Case]) -> None:
    with pytest.raises(LostError, match="status 503"):
        asyncio.run(asked_of(iter([web.Response(status=503)]), cases[0]))


async def asked_of(answers: Iterator[web.Response], case: Case) -> tuple[Expected, int]:
    """What a server with these answers is understood to say, and how often it was asked again."""

    async def answer(_: web.Request) -> web.Response:
        return next(answers)

    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/v1/chat/completions", answer)
    async with TestServer(application) as server:
        asker = Asker(f"{server.host}:{server.port}", "127.0.0.1:1", patience=60)
        try:
            return await asker.ask(case, "chat"), asker.turned_away
        finally:
            await asker.close()


def test_cases_hang_on_their_seed_and_differ_within_it() -> None:
    assert make_cases(3, 3) == make_cases(3, 3)
    assert make_cases(3, 3) != make_cases(4, 3)


def test_cases_have_names_of_their_own(cases: list[Case]) -> None:
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("chat")])
def test_every_case_is_a_conversation_that_the_gateway_takes(way: str, cases: list[Case]) -> None:
    for case in cases:
        said = conversation_of(ChatRequest.model_validate(json.loads(body_of(case, way))).messages)
        assert (said.question, said.history) == (case.question, case.history)
        assert len(said.images) == len(case.images)


def test_every_bad_request_has_a_kind_of_its_own() -> None:
    requests = bad_requests(1, max_images=4)
    assert len({bad.name for bad in requests}) == len(requests) > 20
    assert {bad.status for bad in requests} >= {400, 403, 404, 413, 415}
