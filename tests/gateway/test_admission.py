"""Who may come in, and how many at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nvlm_trt.gateway.admission import Admission, KeyRing
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.settings import Limits

KEYS = ("first-key-of-this-test", "second-key-of-this-test")


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


@pytest.mark.parametrize("header", [None, b"", b"Bearer ", b"Bearer wrong", b"Basic " + KEYS[0].encode()])
def test_without_a_key_nobody_comes_in(header: bytes | None) -> None:
    with pytest.raises(ApiError) as refusal:
        KeyRing(KEYS, Limits()).check(header)
    assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")
    assert refusal.value.headers == {"WWW-Authenticate": "Bearer"}
    assert not any(key in refusal.value.sentence for key in KEYS)


def test_each_key_is_a_client_and_where_there_are_none_everybody_is_one() -> None:
    ring = KeyRing(KEYS, Limits())
    assert [ring.check(f"Bearer {key}".encode()) for key in KEYS] == [0, 1]
    assert ring.check(b"bearer  " + KEYS[1].encode()) == 1
    assert KeyRing((), Limits()).check(None) == 0


def test_a_key_has_a_number_of_requests_at_once_of_its_own() -> None:
    ring = KeyRing(KEYS, Limits(key_concurrent=1))
    with ring.request(0):
        with pytest.raises(ApiError) as refusal, ring.request(0):
            pass
        assert (refusal.value.status, refusal.value.code) == (429, "concurrency_limit_exceeded")
        with ring.request(1):
            pass
    with ring.request(0):
        pass


def test_a_key_has_a_rate_of_its_own_and_is_told_when_to_come_back() -> None:
    now = 100.0
    ring = KeyRing(KEYS, Limits(key_per_minute=2), now=lambda: now)

    def ask(client: int) -> None:
        with ring.request(client):
            pass

    ask(0)
    ask(0)
    with pytest.raises(ApiError) as refusal:
        ask(0)
    assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "30"})
    ask(1)
    now += 30
    ask(0)
    with pytest.raises(ApiError):
        ask(0)
