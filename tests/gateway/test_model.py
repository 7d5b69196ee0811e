"""How long the gateway waits for the model: as long as a request may take, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nvlm_trt.client import Options
from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.metrics import Metrics
from nvlm_trt.gateway.model import Ask, Model
from nvlm_trt.gateway.settings import Limits

from .virtual_time import run

ANSWER_SECONDS = 280.0


@dataclass
class Response:
    """One of the server's, the last one where there is a reason."""

    text: str
    reason: str = ""

    def as_numpy(self, name: str) -> np.ndarray[Any, Any] | None:
        held: Mapping[str, object] = {
            "text_output": self.text.encode(),
            "finish_reason": self.reason.encode(),
            "num_input_tokens": 3,
            "num_output_tokens": 2,
        }
        return np.array([held[name]]) if name in held else None

    def get_response(self) -> SimpleNamespace:
        return SimpleNamespace(parameters={"triton_final_response": SimpleNamespace(bool_param=bool(self.reason))})


class SlowClient:
    """In place of tritonclient's: says nothing for minutes, then everything."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def stream_infer(self, *_: object, **__: object) -> _Responses:
        return _Responses()


class _Responses:
    def __init__(self) -> None:
        self._responses = self._made()

    async def _made(self) -> AsyncIterator[tuple[Response, None]]:
        await asyncio.sleep(ANSWER_SECONDS)
        yield Response("a "), None
        await asyncio.sleep(ANSWER_SECONDS)
        yield Response("word", "stop"), None

    def __aiter__(self) -> _Responses:
        return self

    def __anext__(self) -> Awaitable[tuple[Response, None]]:
        return self._responses.__anext__()

    def cancel(self) -> None:
        pass


async def ask(deadline: float, how: Callable[[Model, Exchange], Awaitable[str]]) -> tuple[str, float]:
    """What is told, and after how many seconds."""
    limits, loop = Limits(deadline=deadline), asyncio.get_running_loop()
    admission = Admission(limits)
    metrics = Metrics(admission, lambda: True, dict, dict, "mini")
    model, began = Model("nowhere", admission, metrics, lambda: True), loop.time()

    async def nothing(*_: object) -> Any:
        raise AssertionError

    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
    with admission.place() as place:
        exchange = Exchange(scope, nothing, nothing, limits, admission.buffer)
        exchange.place = place
        async with exchange.stack:
            try:
                said = await how(model, exchange)
            except TimeoutError:
                said = "too late"
    return said, loop.time() - began


async def whole(model: Model, exchange: Exchange) -> str:
    return (await model.answer(Ask("Hello", Options()), exchange)).text


async def streamed(model: Model, exchange: Exchange) -> str:
    pieces = await model.stream(Ask("Hello", Options()), exchange)
    return "".join([text async for text in pieces])


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvlm_trt.triton_streams.triton.InferenceServerClient", SlowClient)


@pytest.mark.parametrize("how", [whole, streamed])
def test_an_answer_may_be_long_in_coming(how: Callable[[Model, Exchange], Awaitable[str]]) -> None:
    assert run(ask(600.0, how)) == ("a word", pytest.approx(2 * ANSWER_SECONDS))


@pytest.mark.parametrize("how", [whole, streamed])
@pytest.mark.parametrize("deadline", [200.0, 500.0])
def test_but_no_longer_than_its_deadline(how: Callable[[Model, Exchange], Awaitable[str]], deadline: float) -> None:
    assert run(ask(deadline, how)) == ("too late", pytest.approx(deadline, abs=0.1))
