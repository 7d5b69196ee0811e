"""How one request of a batch becomes one record: sent, sent again while the server is at fault, answered or not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nvlm_trt.client.batch_request import BatchRequest, Id
from nvlm_trt.client.request import Image, Options, Turn, image_bytes
from nvlm_trt.client.response import Answer
from nvlm_trt.client.retry import Backoff
from nvlm_trt.errors import NvlmTrtError, RequestError, ServerError, UserError
from nvlm_trt.serving.faults import UnavailableError


class Client(Protocol):
    """What is needed of `AsyncNvlmClient`."""

    async def generate(
        self,
        prompt: str,
        *,
        images: Sequence[Image],
        history: Sequence[Turn],
        system: str | None,
        options: Options | None,
    ) -> Answer:
        """Ask and wait for the whole answer."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a request: an answer or an error.

    Attributes:
        id: The request's.
        seconds: From the first attempt to the outcome, waits included.
        attempts: How often it was sent.
        answer: The answer.
        error: Why there is none.
    """

    id: Id
    seconds: float
    attempts: int
    answer: Answer | None = None
    error: NvlmTrtError | None = None

    def as_json(self) -> dict[str, Any]:
        """The line of the output."""
        seconds = round(self.seconds, 3)
        if self.answer is not None:
            return {
                "id": self.id,
                "text": self.answer.text,
                "finish_reason": self.answer.finish_reason,
                "num_input_tokens": self.answer.num_input_tokens,
                "num_output_tokens": self.answer.num_output_tokens,
                "seconds": seconds,
            }
        error = {"message": str(self.error), "kind": type(self.error).__name__, "attempts": self.attempts}
        return {"id": self.id, "error": error, "seconds": seconds}


class Asker:
    """Asks requests, several at a time.

    Args:
        client: Of the server.
        backoff: When a request is sent again.
        clock: Seconds.
        sleep: Waits so many of them.
        chance: Shortens the waits.
    """

    def __init__(
        self,
        client: Client,
        backoff: Backoff | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._client, self._backoff = client, backoff or Backoff()
        self._clock, self._sleep, self._chance = clock, sleep, chance or random.Random()
        self._signs_of_life = 0

    async def ask(self, request: BatchRequest) -> Record:
        """Ask until there is an answer, a refusal, or no attempt left.

        Only a server's fault is worth another attempt: it cannot be reached, is busy, fell silent, broke off, failed.
        One that turns the request away uses up no attempt as long as it answers others between.

        Raises:
            UnavailableError: no attempt is left of a server that answers nobody. The request is not at fault then, and
                the next one would fare no better.
        """
        started, signs = self._clock(), self._signs_of_life
        attempts = faults = turned_away = 0
        while True:
            attempts += 1
            try:
                answer = await self._send(request)
                self._signs_of_life += 1
                return Record(request.id, self._clock() - started, attempts, answer=answer)
            except UserError as error:
                self._signs_of_life += isinstance(error, RequestError)
                return Record(request.id, self._clock() - started, attempts, error=error)
            except ServerError as error:
                lives, signs = signs != self._signs_of_life, self._signs_of_life
                away = isinstance(error, UnavailableError)
                faults += not away
                turned_away = turned_away + away if not lives else 0
                if faults + turned_away >= self._backoff.attempts:
                    if away:
                        raise
                    return Record(request.id, self._clock() - started, attempts, error=error)
            await self._sleep(self._backoff.wait(attempts, self._chance))

    async def _send(self, request: BatchRequest) -> Answer:
        images = [await asyncio.to_thread(image_bytes, image) for image in request.images]
        return await self._client.generate(
            request.prompt,
            images=images,
            history=request.history,
            system=request.system,
            options=request.options,
        )
