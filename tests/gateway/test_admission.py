"""How many may come in, and how long the others are told to wait."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nvlm_trt.gateway.admission import BODY_SECONDS, SPREAD, Admission
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


def test_bodies_that_do_not_come_take_no_places() -> None:
    clock = Clock()
    admission = Admission(Limits(max_concurrent=1, max_queue=2, max_planned=30), now=clock)
    with contextlib.ExitStack() as stack:
        with admission.place() as place:
            admission.plan(place, 10)
        slow = [stack.enter_context(admission.place()) for _ in range(3)]
        with pytest.raises(ApiError), admission.place():
            pass
        clock.now += BODY_SECONDS
        assert (admission.present, admission.planned) == (0, 0)
        for _ in range(3):
            admission.plan(stack.enter_context(admission.place()), 10)
        with pytest.raises(ApiError), admission.place():
            pass
        slow[0].has_arrived = True
        assert (admission.present, admission.planned) == (4, 40)
        with pytest.raises(ApiError):
            admission.plan(slow[0], 10)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def busy(limits: Limits, *, batch: int, clock: Clock, stack: contextlib.ExitStack) -> Admission:
    """An admission whose decoder works off 100 tokens a second, with requests of 50 tokens in its whole batch."""
    admission = Admission(limits, batch, clock)
    for _ in range(batch):
        admission.plan(stack.enter_context(admission.place()), 50)
    for _ in range(200):
        with admission.place() as place:
            admission.plan(place, 50)
            clock.now += 0.5
            admission.answered(place)
    assert admission.rate == pytest.approx(100, rel=0.02)
    return admission


def test_who_would_wait_for_too_long_is_refused_and_told_when_to_come_back() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=5 * SPREAD), batch=2, clock=Clock(), stack=stack)
        assert admission.wait == pytest.approx(0.5, rel=0.05)  # nobody is before a newcomer but those that are served
        waiting = stack.enter_context(admission.place())
        admission.plan(waiting, 400)
        assert admission.wait < 5
        admission.line_up(stack.enter_context(admission.place()))
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


def test_those_who_hang_up_say_nothing_of_the_pace_whatever_was_done_for_them() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1e6), batch=2, clock=clock, stack=stack)
    before = admission.rate
    for seconds in (0.01, 0.5, 60.0) * 50:
        with admission.place() as one, admission.place() as other, admission.place() as behind:
            for place in (one, other, behind):
                admission.plan(place, 1000)
            clock.now += seconds
    assert admission.rate == pytest.approx(before)


def test_a_request_that_the_decoder_cannot_take_yet_keeps_nobody_out_and_is_no_work() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1), batch=2, clock=clock, stack=stack)
    before = admission.rate
    with contextlib.ExitStack() as uploads:
        slow = []
        for _ in range(20):
            slow.append(uploads.enter_context(admission.place()))
            clock.now += 3
        assert (admission.wait, admission.rate) == (0, before)
        for place in slow[:2]:
            admission.plan(place, 50)
        assert admission.wait == pytest.approx(0.5, rel=0.05)  # of those whose bodies are there
    assert admission.rate == before


def test_of_many_that_come_at_once_no_more_are_let_in_than_are_answered_in_time() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=2.4 * SPREAD), batch=2, clock=Clock(), stack=stack)
        came = 0
        for _ in range(10):
            with contextlib.suppress(ApiError):
                stack.enter_context(admission.place())
                came += 1
        assert came == 4  # half a second each, beside the half until a place of the batch comes free


def test_of_many_whose_bodies_were_slow_those_that_would_wait_too_long_are_refused_when_they_join_the_line() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=2.4), batch=2, clock=clock, stack=stack)
        crowd = []
        for _ in range(10):
            crowd.append(stack.enter_context(admission.place()))
            clock.now += BODY_SECONDS
        joined = 0
        for place in crowd:
            with contextlib.suppress(ApiError):
                admission.plan(place, 50)
                joined += 1
        assert 0 < joined < 4  # nothing was answered meanwhile: the pace fell
        with pytest.raises(ApiError) as refusal:
            admission.line_up(crowd[-1])
        assert (refusal.value.status, refusal.value.code) == (503, "overloaded")


def test_what_is_not_planned_counts_as_what_requests_take_but_while_its_body_takes_its_time() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=2), batch=2, clock=clock, stack=stack)
        unplanned = stack.enter_context(admission.place())
        assert admission.wait == pytest.approx(1.0, rel=0.05)
        clock.now += BODY_SECONDS
        assert admission.wait == pytest.approx(0.5, rel=0.1)
        unplanned.has_arrived = True
        assert admission.wait == pytest.approx(1.0, rel=0.1)
        for _ in range(2):
            admission.line_up(unplanned)
            assert admission.wait == pytest.approx(1.0, rel=0.1)


def test_who_never_asks_the_decoder_is_waited_for_by_nobody() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=2), batch=2, clock=Clock(), stack=stack)
        planned = admission.planned
        for _ in range(8):
            stack.enter_context(admission.place(joins=False)).has_arrived = True
        assert admission.wait == pytest.approx(0.5, rel=0.05)
        assert (admission.present, admission.planned) == (10, planned)


def test_who_waits_for_images_that_take_their_time_is_waited_for_by_nobody_but_has_a_place() -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=2), batch=2, clock=clock, stack=stack)
        place = stack.enter_context(admission.place())
        place.has_arrived = place.reads_images = True
        assert admission.wait == pytest.approx(1.0, rel=0.05)
        clock.now += BODY_SECONDS
        assert admission.wait == pytest.approx(0.5, rel=0.1)
        assert admission.present == 3
        place.reads_images = False
        assert admission.wait == pytest.approx(1.0, rel=0.1)


def test_where_fewer_are_worked_on_than_the_batch_holds_the_others_wait() -> None:
    clock = Clock()
    admission = Admission(Limits(max_concurrent=1, queue_time=15.5 * SPREAD), 8, clock)
    with admission.place() as place:
        admission.plan(place, 100)
        clock.now += 10
        admission.answered(place)
    with contextlib.ExitStack() as stack:
        for wait in (0, 10):
            assert admission.wait == wait
            admission.plan(stack.enter_context(admission.place()), 100)
        assert admission.wait == 20
        with pytest.raises(ApiError) as refusal, admission.place():
            pass
        assert refusal.value.headers == {"Retry-After": "5"}


def test_while_the_decoder_has_a_place_nobody_waits() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1), batch=2, clock=Clock(), stack=stack)
    with admission.place() as long:
        admission.plan(long, 50)
        long.tokens = 1 << 19
        assert admission.wait == 0
        with admission.place() as place:  # those of the batch are served: who comes next waits for one of their places
            admission.plan(place, 50)
            assert admission.wait == pytest.approx(0.5, rel=0.05)


def test_nobody_waits_for_a_request_whose_answer_is_only_on_its_way_to_its_client() -> None:
    with contextlib.ExitStack() as stack:
        admission = busy(Limits(queue_time=1), batch=2, clock=Clock(), stack=stack)
    with admission.place() as first, admission.place() as second:
        for place in (first, second):
            admission.plan(place, 50)
        assert admission.wait > 0
        admission.answered(first)
        assert (admission.wait, admission.present) == (0, 2)


def test_planned_tokens_of_all_together_have_a_bound_which_one_alone_may_pass() -> None:
    admission = Admission(Limits(max_planned=1000))
    with admission.place() as alone:
        admission.plan(alone, 5000)
        with admission.place() as second, pytest.raises(ApiError) as refusal:
            admission.plan(second, 1)
        assert (refusal.value.status, refusal.value.code) == (503, "overloaded")
        admission.plan(alone, 900)
        with admission.place() as second:
            admission.plan(second, 100)
            assert admission.planned == 1000
    assert admission.planned == 0


def test_a_request_counts_as_what_requests_take_until_it_is_planned() -> None:
    admission = Admission(Limits())
    for tokens, mean in ((300, 300), (100, 200)):
        with admission.place() as place:
            admission.plan(place, tokens)
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
