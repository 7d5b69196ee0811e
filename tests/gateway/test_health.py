"""The deep probe: a request of its own, whose result serves many who ask."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nvlm_trt.gateway.health import PROBE_KEPT_SECONDS, Probe
from nvlm_trt.gateway.model import Model


class Slow:
    """A model that takes longer to answer a probe than its result stands, by a clock of its own."""

    def __init__(self, *, works: bool) -> None:
        self.now = 0.0
        self.asked = 0
        self._works = works

    async def probe(self, image: bytes, seconds: float) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        self.now += 2 * PROBE_KEPT_SECONDS
        if not self._works:
            raise TimeoutError


@pytest.mark.parametrize("works", [True, False])
def test_many_who_ask_cost_one_request_however_long_it_takes(works: bool) -> None:
    model, told = Slow(works=works), cast(list[bool], [])

    async def ask() -> None:
        probe = Probe(lambda: cast(Model, cast(Any, model)), told.append, now=lambda: model.now)
        assert await asyncio.gather(*[probe.works() for _ in range(6)]) == [works] * 6
        assert (model.asked, told) == (1, [works])
        model.now += PROBE_KEPT_SECONDS
        assert await probe.works() == works
        assert model.asked == 1
        model.now += 1
        assert await probe.works() == works
        assert (model.asked, told) == (2, [works] * 2)

    asyncio.run(ask())
