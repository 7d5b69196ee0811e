"""Ways to ask a server: OpenAI's chat and KServe's generate over HTTP, and gRPC, each whole and as a stream."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import aiohttp

from nvlm_trt.client.aio import AsyncNvlmClient
from nvlm_trt.errors import NvlmTrtError

from .cases import Case, said_of
from .references import Expected

WAYS: Final = {
    "chat": 0.30,
    "chat stream": 0.30,
    "generate": 0.10,
    "generate stream": 0.10,
    "grpc": 0.05,
    "grpc stream": 0.15,
}
"""Shares of the load."""

PATHS: Final = {
    "chat": "/v1/chat/completions",
    "chat stream": "/v1/chat/completions",
    "generate": "/v2/models/nvlm/generate",
    "generate stream": "/v2/models/nvlm/generate_stream",
}


class LostError(Exception):
    """A good request without an answer, and why."""


class _TurnedAwayError(Exception):
    """The server has no place now, and said after how many seconds to come again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def body_of(case: Case, way: str) -> bytes:
    """The body of a case over HTTP."""
    return json.dumps(_chat(case, way) if way.startswith("chat") else _generate(case)).encode()


def _chat(case: Case, way: str) -> dict[str, Any]:
    images = iter(case.images)
    messages = [{"role": role, "content": _parts(role, text, images)} for role, text in said_of(case)]
    asked: dict[str, Any] = {"model": "nvlm", "messages": messages, **_options(case, "max_completion_tokens")}
    if way == "chat stream":
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked


def _parts(role: str, text: str, images: Any) -> str | list[dict[str, Any]]:
    places = text.count("<image>") if role == "user" else 0
    if not places:
        return text
    uris = [_uri(next(images)) for _ in range(places)]
    return [*({"type": "image_url", "image_url": {"url": uri}} for uri in uris), {"type": "text", "text": text}]


def _uri(file: bytes) -> str:
    return "data:image/any;base64," + base64.b64encode(file).decode()


def _generate(case: Case) -> dict[str, Any]:
    asked: dict[str, Any] = _options(case, "max_tokens")
    if case.history:
        asked["messages"] = json.dumps([{"role": role, "content": text} for role, text in said_of(case)])
    else:
        asked["text_input"] = case.question
    if case.images:
        asked["image_bytes"] = [base64.b64encode(file).decode() for file in case.images]
    return asked


def _options(case: Case, limit: str) -> dict[str, Any]:
    asked = case.options
    named = {limit: asked.max_tokens, "min_tokens": asked.min_tokens, "temperature": asked.temperature}
    named |= {"top_p": asked.top_p, "seed": asked.seed}
    return {name: value for name, value in named.items() if value is not None}


class Asker:
    """Asks one server; belongs to an event loop.

    Args:
        http: ``host:port`` of the gateway.
        grpc: ``host:port`` of gRPC.
        patience: Seconds after which an answer counts as lost.

    Attributes:
        turned_away: How often the server said that it has no place now, and was asked again when it had said.
    """

    def __init__(self, http: str, grpc: str, patience: float) -> None:
        self.http = http
        self.turned_away = 0
        self._patience = patience
        self._session = aiohttp.ClientSession(
            f"http://{http}", connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=patience)
        )
        self.client = AsyncNvlmClient(grpc, idle_timeout=patience)
        self._bodies: dict[tuple[str, str], bytes] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self.client.close()

    def body(self, case: Case, way: str) -> bytes:
        """The body of a case over HTTP, made once."""
        key = (case.name, way)
        if key not in self._bodies:
            self._bodies[key] = body_of(case, way)
        return self._bodies[key]

    async def ask(self, case: Case, way: str) -> Expected:
        """Ask and read the answer to its end.

        Raises:
            LostError: there is none.
        """
        how: Callable[[Case, str], Awaitable[Expected]] = self._over_grpc if way.startswith("grpc") else self._over_http
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        return await how(case, way)
                    except _TurnedAwayError as error:
                        self.turned_away += 1
                        await asyncio.sleep(error.seconds)
        except TimeoutError:
            raise LostError(f"no answer within {self._patience:g} s") from None
        except (aiohttp.ClientError, NvlmTrtError, OSError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from None

    async def _over_grpc(self, case: Case, way: str) -> Expected:
        asked = {"images": case.images, "history": case.history, "options": case.options}
        if way == "grpc":
            answer = await self.client.generate(case.question, **asked)  # type: ignore[arg-type]
        else:
            async with self.client.stream(case.question, **asked) as stream:  # type: ignore[arg-type]
                answer = await stream.answer()
        return Expected(answer.text, answer.finish_reason, answer.num_input_tokens, answer.num_output_tokens)

    async def _over_http(self, case: Case, way: str) -> Expected:
        async with self._session.post(PATHS[way], data=self.body(case, way)) as answer:
            if answer.status == 503 and answer.headers.get("Retry-After", "").isdigit():
                raise _TurnedAwayError(float(answer.headers["Retry-After"]))
            if answer.status != 200:
                raise LostError(f"status {answer.status}: {(await answer.text())[:300]}")
            if way == "chat":
                return _whole_chat(await answer.json())
            if way == "generate":
                return _whole_generate([await answer.json()])
            events = [event async for event in _events(answer.content)]
            return _streamed_chat(events) if way == "chat stream" else _whole_generate(events)

    async def refused(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of the answer to a bad request; a server that has no place for it is asked again."""
        async with asyncio.timeout(self._patience):
            while True:
                async with self._session.post(path, data=body, headers=headers) as answer:
                    if answer.status != 503:
                        return answer.status, await answer.text()
                    pause = float(answer.headers.get("Retry-After", "1"))
                await asyncio.sleep(pause)

    async def figures(self) -> str:
        """The metrics of the gateway and the server."""
        async with self._session.get("/metrics", timeout=aiohttp.ClientTimeout(total=30)) as answer:
            answer.raise_for_status()
            return await answer.text()


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; one that ends without OpenAI's end mark is told by what it lacks."""
    async for line in content:
        text = line.strip().removeprefix(b"data: ")
        if not text or text == b"[DONE]":
            continue
        event = json.loads(text)
        if "error" in event:
            raise LostError(f"an event of an error: {event['error']}")
        yield event


def _whole_chat(answer: dict[str, Any]) -> Expected:
    choice, usage = answer["choices"][0], answer["usage"]
    counts = (usage["prompt_tokens"], usage["completion_tokens"])
    return Expected(choice["message"]["content"], choice["finish_reason"], *counts)


def _streamed_chat(events: list[dict[str, Any]]) -> Expected:
    choices = [choice for event in events for choice in event["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    usages = [event["usage"] for event in events if event.get("usage")]
    if len(reasons) != 1 or len(usages) != 1:
        raise LostError("a stream broke off")
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return Expected(text, reasons[0], usages[0]["prompt_tokens"], usages[0]["completion_tokens"])


def _whole_generate(events: list[dict[str, Any]]) -> Expected:
    ends = [event for event in events if event.get("finish_reason")]
    if len(ends) != 1:
        raise LostError("a stream broke off")
    text = "".join(event["text_output"] for event in events)
    return Expected(text, ends[0]["finish_reason"], int(ends[0]["num_input_tokens"]), int(ends[0]["num_output_tokens"]))
