"""When a request is sent again, when it is not, and when the server is taken for gone."""

from __future__ import annotations

import asyncio
import random

import pytest

from nvlm_trt.client.batch_ask import Asker
from nvlm_trt.client.batch_request import BatchRequest
from nvlm_trt.client.response import Answer, silence
from nvlm_trt.client.retry import Backoff
from nvlm_trt.errors import RequestError, ServerError
from nvlm_trt.serving.faults import UnavailableError

ANSWER = Answer("yes", "stop", 5, 1)


class Scripted:
    """A client that raises and returns what it is told, by prompt."""

    def __init__(self, **outcomes):
        self.outcomes = {prompt: list(given) for prompt, given in outcomes.items()}
        self.sent = []

    async def generate(self, prompt, **rest):
        self.sent.append(prompt)
        outcome = self.outcomes[prompt].pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Clock:
    """Time that only sleeping lets pass."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def __call__(self):
        return self.now


def asker_of(client, clock, attempts=4, **options):
    return Asker(client, Backoff(attempts, **options), clock=clock, sleep=clock.sleep, chance=random.Random(1))


def ask(client, clock=None, prompt="q", **options):
    asker = asker_of(client, clock or Clock(), **options)
    return asyncio.run(asker.ask(BatchRequest("a", prompt)))


@pytest.mark.parametrize(
    "fault", [UnavailableError("busy"), silence(3), ServerError("the answer broke off"), ServerError("failed")]
)
def test_a_fault_of_the_server_is_asked_again(fault):
    clock = Clock()
    record = ask(Scripted(q=[fault, fault, ANSWER]), clock)
    assert record.answer == ANSWER
    assert record.attempts == 3
    assert record.seconds == clock.now - 100 > 0
    assert record.as_json() == {
        "id": "a",
        "text": "yes",
        "finish_reason": "stop",
        "num_input_tokens": 5,
        "num_output_tokens": 1,
        "seconds": round(record.seconds, 3),
    }


def test_a_refused_request_is_not():
    clock, client = Clock(), Scripted(q=[RequestError("the prompt is longer than the engine")])
    assert ask(client, clock).as_json() == {
        "id": "a",
        "error": {"message": "the prompt is longer than the engine", "kind": "RequestError", "attempts": 1},
        "seconds": 0.0,
    }
    assert clock.slept == []


def test_an_image_that_is_gone_is_an_error_of_its_request_and_nothing_is_sent(tmp_path):
    client = Scripted()
    asker = asker_of(client, Clock())
    record = asyncio.run(asker.ask(BatchRequest("a", "q", (tmp_path / "gone.png",))))
    assert record.as_json()["error"]["kind"] == "ImageRejected"
    assert client.sent == []


def test_waits_double_up_to_a_limit_and_chance_shortens_them_by_less_than_half():
    clock = Clock()
    ask(Scripted(q=[ServerError("failed")] * 7), clock, attempts=7, first=1.0, longest=10.0)
    for slept, whole in zip(clock.slept, [1, 2, 4, 8, 10, 10], strict=True):
        assert whole / 2 < slept <= whole
    assert len({slept / whole for slept, whole in zip(clock.slept, [1, 2, 4, 8, 10, 10], strict=True)}) == 6


def test_a_request_that_fails_every_time_is_a_record_with_its_attempts():
    record = ask(Scripted(q=[ServerError("failed")] * 4))
    assert record.as_json()["error"] == {"message": "failed", "kind": "ServerError", "attempts": 4}


def test_a_server_that_nobody_reaches_is_gone():
    with pytest.raises(UnavailableError, match="busy"):
        ask(Scripted(q=[UnavailableError("busy")] * 4))


class Busy(Clock):
    """Time in which another request of the batch is settled in each of the first so many waits."""

    def __init__(self, times, sign=ANSWER):
        super().__init__()
        self.times, self.sign = times, sign

    async def sleep(self, seconds):
        await super().sleep(seconds)
        if len(self.slept) <= self.times:
            self.client.outcomes["good"] = [self.sign]
            await self.asker.ask(BatchRequest("b", "good"))

    def ask(self, *outcomes):
        self.client = Scripted(bad=outcomes)
        self.asker = asker_of(self.client, self)
        return asyncio.run(self.asker.ask(BatchRequest("a", "bad")))


@pytest.mark.parametrize("sign", [ANSWER, RequestError("refused")])
def test_a_busy_server_that_answers_others_between_uses_up_no_attempt(sign):
    record = Busy(20, sign).ask(*[UnavailableError("busy")] * 20, ANSWER)
    assert record.answer == ANSWER
    assert record.attempts == 21


def test_a_server_that_answers_nobody_any_more_is_gone_after_so_many_attempts_since():
    clock = Busy(20)
    with pytest.raises(UnavailableError, match="busy"):
        clock.ask(*[UnavailableError("busy")] * 30)
    assert len(clock.slept) == 20 + 4


def test_a_request_that_fails_in_another_way_uses_up_its_attempts_whoever_else_is_answered():
    record = Busy(20).ask(*[ServerError("failed"), UnavailableError("restarts")] * 4)
    assert record.as_json()["error"] == {"message": "failed", "kind": "ServerError", "attempts": 7}
