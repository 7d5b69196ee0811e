"""How many may come in, and how long the others are told to wait."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nvlm_trt.gateway.admission import SPREAD, Admission
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.settings import Limits


def test_more_requests_than_places_are_told_to_come_back() -> None:
    admission = Admission(Limits(max_concurrent=1, max_queue=2))
    with contextlib.ExitStack() as places:
        for _ in range(3):
            places.enter_context(admission.place())
        with pytest.raises(ApiError) as refusal, admission.place():
            pass
        assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "1"})
    with admission.place():
        assert admission.present == 1


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def busy(limits: Limits, *, batch: int, clock: Clock, stack: contextlib.ExitStack) -> Admission:
    """An admission whose decoder works off 100 tokens a second, with requests of 50 tokens in its whole batch."""
    admission = Admission(limits, batch, clock)
    for _ in range(batch):
        admission.plan(stack.enter_context(admission.place()), 50, 0)
    for _ in range(200):
        with admission.place() as place:
            admission.plan(place, 50, 0)
            clock.now += 0.5
            admission.answered(place)
    assert admission.rate == pytest.approx(100, rel=0.02)
    return admission


def test_who_would_wait_for_too_long_is_refused_and_told_when_to_come_back() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=5 * SPREAD), batch=2, clock=Clock(), stack=stack)
        assert admission.wait == pytest.approx(0.5, rel=0.05)  # nobody is before a newcomer but those that are served
        waiting = stack.enter_context(admission.place())
        admission.plan(waiting, 400, 0)
        assert admission.wait < 5
        stack.enter_context(admission.place())
        with pytest.raises(ApiError) as refusal, admission.place():
            pass
        assert (refusal.value.status, refusal.value.code, refusal.value.headers) == (
            503,
            "overloaded",
            {"Retry-After": "1"},
        )
        waiting.tokens += 700
        with pytest.raises(ApiError) as refusal, admission.place():
            pass
        assert 7 <= int(refusal.value.headers["Retry-After"]) <= 9


def test_what_was_done_for_those_who_hang_up_counts() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1e6), batch=2, clock=clock, stack=stack)
        for _ in range(200):
            with admission.place() as place:
                admission.plan(place, 40, 1000)
                clock.now += 0.5
                for _ in range(10):
                    place.text_came()
        assert admission.rate == pytest.approx(100, rel=0.02)
        for _ in range(200):  # but nothing that no text shows
            with admission.place() as place:
                admission.plan(place, 40, 1000)
                clock.now += 0.5
        assert admission.rate < 5


def test_while_the_decoder_has_a_place_nobody_waits() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1), batch=2, clock=Clock(), stack=stack)
    with admission.place() as long:
        long.tokens = 1 << 19
        assert admission.wait == 0
        with admission.place():  # those of the batch are served: who comes next waits for one of their places alone
            assert admission.wait == pytest.approx(0.5, rel=0.05)


def test_nobody_waits_for_a_request_whose_answer_is_only_on_its_way_to_its_client() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1), batch=2, clock=Clock(), stack=stack)
    with admission.place() as first, admission.place():
        assert admission.wait > 0
        admission.answered(first)
        assert (admission.wait, admission.present) == (0, 2)


def test_planned_tokens_of_all_together_have_a_bound_which_one_alone_may_pass() -> None:
    admission = Admission(Limits(max_planned=1000))
    with admission.place() as alone:
        admission.plan(alone, 5000, 0)
        with admission.place() as second, pytest.raises(ApiError) as refusal:
            admission.plan(second, 1, 0)
        assert (refusal.value.status, refusal.value.code) == (503, "overloaded")
        admission.plan(alone, 900, 0)
        with admission.place() as second:
            admission.plan(second, 100, 0)
            assert admission.planned == 1000
    assert admission.planned == 0


def test_a_request_counts_as_what_requests_take_until_it_is_planned() -> None:
    admission = Admission(Limits())
    for tokens, mean in ((300, 300), (100, 200)):
        with admission.place() as place:
            admission.plan(place, tokens, 0)
        with admission.place():
            assert admission.planned == mean


def test_slots_are_given_in_the_order_of_coming_and_one_that_is_given_up_is_free_again() -> None:
    async def run() -> list[str]:
        admission = Admission(Limits(max_concurrent=1))
        order = []

        async def work(name: str) -> None:
            async with admission.slot():
                assert admission.working == 1
                order.append(name)
                await asyncio.sleep(0)

        async with admission.slot():
            tasks = [asyncio.create_task(work(name)) for name in "abc"]
            await asyncio.sleep(0)
            tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert admission.working == 0
        return order

    assert asyncio.run(run()) == ["a", "c"]


def test_bodies_are_held_within_a_limit_for_all_together() -> None:
    admission = Admission(Limits(max_buffered=10))
    admission.buffer(8)
    with pytest.raises(ApiError) as refusal:
        admission.buffer(3)
    assert refusal.value.status == 503
    admission.buffer(-8)
    admission.buffer(10)


def test_whoever_waits_is_refused_when_the_server_ends_and_waits_on_while_it_is_replaced() -> None:
    async def run() -> tuple[bool, int]:
        state = {"ready": True, "ending": False}
        admission = Admission(
            Limits(max_concurrent=1), is_ready=lambda: state["ready"], is_ending=lambda: state["ending"]
        )
        got = asyncio.Event()

        async def work() -> None:
            async with admission.slot():
                got.set()

        async with admission.slot():
            state["ready"] = False
            with pytest.raises(ApiError, match="being replaced") as refused, admission.place():
                raise AssertionError
            assert refused.value.status == 503
            patient = asyncio.create_task(work())
            await asyncio.sleep(0.15)
        await asyncio.sleep(0.15)
        waited = not got.is_set()  # the slot is free, the server is not there
        state["ready"] = True
        await asyncio.wait_for(got.wait(), 5)
        await patient
        async with admission.slot():
            late = asyncio.create_task(work())
            await asyncio.sleep(0.05)
            state["ready"], state["ending"] = False, True
            with pytest.raises(ApiError, match="being replaced"):
                await asyncio.wait_for(late, 5)
        return waited, admission.working

    assert asyncio.run(run()) == (True, 0)
