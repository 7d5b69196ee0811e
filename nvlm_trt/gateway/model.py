"""The served model, asked over gRPC with the project's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from tritonclient.utils import InferenceServerException

from nvlm_trt.client import Answer, AsyncAnswerStream, Options
from nvlm_trt.client.aio import cancel
from nvlm_trt.client.request import Turn, build_inputs
from nvlm_trt.client.response import Token
from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.errors import unavailable
from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.metrics import Metrics
from nvlm_trt.gateway.plan import Plan, Planner, Plans
from nvlm_trt.gateway.waiting import wait_for_slot
from nvlm_trt.loopback import DIRECT, MESSAGES
from nvlm_trt.serving.fields import REQUEST_ID, TRACEPARENT
from nvlm_trt.triton_streams import AGAIN_SECONDS, Connection, note_not_ended

CHANNEL: Final = [
    *MESSAGES,
    DIRECT,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.service_config", '{"methodConfig": [{"name": [{}], "waitForReady": true}]}'),
]
"""Comes back soon after the server was replaced (gRPC's own patience grows to two minutes), and lets a call wait for
that: whoever comes when the server is known to be away is refused before."""

BEYOND_SECONDS: Final = 1.0
"""A silent server is given up that long after the deadline: the deadline is what a client is told."""

ASKED_TO_END: Final = 3
"""Times that the model is asked to end a request that came by another way, of which nobody hears that it has ended."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to the model."""

    question: str
    options: Options
    history: Sequence[Turn] = ()
    system: str | None = None
    images: Sequence[bytes] = ()

    def plan(self, planner: Planner) -> Plan:
        """What it will take.

        Raises:
            UserError: it is refused.
        """
        options = self.options
        return planner.plan(
            self.question,
            images=self.images,
            history=self.history,
            system=self.system,
            max_tiles=options.max_tiles,
            exif_orientation=options.exif_orientation,
            max_tokens=options.max_tokens,
        )


class Model:
    """Asks the model; made and used in one event loop.

    Args:
        address: ``host:port`` of tritonserver's gRPC.
        admission: Told what requests take; whose slots are waited for.
        metrics: Told what comes back.
        is_ready: Whether the server answers now.
        plans: Plans requests; None where no engine is at hand.
    """

    def __init__(
        self,
        address: str,
        admission: Admission,
        metrics: Metrics,
        is_ready: Callable[[], bool],
        plans: Plans | None = None,
    ) -> None:
        self._connection = Connection(address, CHANNEL)
        self._admission = admission
        self._metrics = metrics
        self._is_ready = is_ready
        self._plans = plans

    def end(self, request_id: str) -> None:
        """Have the model end a request that came to it by another way and is given up, if it has begun it."""
        self._connection.run(self._end(request_id))

    async def _end(self, request_id: str) -> None:
        for _ in range(ASKED_TO_END):
            try:
                await cancel(self._connection, request_id)
            except (InferenceServerException, grpc.RpcError) as error:
                note_not_ended(error)
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def answer(self, ask: Ask, exchange: Exchange) -> Answer:
        """The whole answer."""
        async with asyncio.timeout_at(exchange.deadline):
            stream = await self._start(ask, exchange, stream=False)
            answer = await stream.answer()
        self._answered(exchange, answer)
        return answer

    async def stream(self, ask: Ask, exchange: Exchange) -> Pieces:
        """The answer as it comes; its first piece is there when this returns, so that an early error has a status."""
        async with asyncio.timeout_at(exchange.deadline):
            stream = await self._start(ask, exchange, stream=True)
            first = await anext(aiter(stream), "")
        came = self._metrics.texts(exchange)
        came()
        return Pieces(stream, first, exchange.deadline, came, lambda answer: self._answered(exchange, answer))

    def spelled(self, tokens: Sequence[Token]) -> list[dict[str, object]]:
        """Tokens of an answer in OpenAI's form; part of a character is shown as U+FFFD, its bytes are whole."""
        if self._plans is None:
            return []
        spelled = [self._plans.token_bytes(token.id) for token in tokens]
        return [
            {"token": one.decode(errors="replace"), "logprob": token.log_prob, "bytes": [*one], "top_logprobs": []}
            for token, one in zip(tokens, spelled, strict=True)
        ]

    async def probe(self, image: bytes, seconds: float) -> None:
        """Ask for one token about an image, past the queue.

        Raises:
            NvlmTrtError: the model does not answer.
            TimeoutError: not in time.
        """
        inputs = build_inputs("?", images=[image], history=(), system=None, options=Options(max_tokens=1), stream=False)
        async with asyncio.timeout(seconds), AsyncAnswerStream(self._connection, inputs, seconds) as stream:
            await stream.answer()

    async def _start(self, ask: Ask, exchange: Exchange, *, stream: bool) -> AsyncAnswerStream:
        if not self._is_ready():
            raise unavailable()
        if exchange.place is not None and self._plans is not None:
            plan = await self._plans.ask(ask.plan)
            self._admission.plan(exchange.place, plan.tokens)
        inputs = build_inputs(
            ask.question,
            images=ask.images,
            history=ask.history,
            system=ask.system,
            options=ask.options,
            stream=stream,
        )
        await wait_for_slot(exchange, self._admission, self._metrics)
        parameters = {REQUEST_ID: exchange.request_id}
        if exchange.span.traceparent is not None:
            parameters[TRACEPARENT] = exchange.span.traceparent
        # A whole answer comes at once, so that silence says nothing: hangs are the supervisor's to see.
        left = max(exchange.deadline - asyncio.get_running_loop().time(), 0.0)
        asked = AsyncAnswerStream(self._connection, inputs, left + BEYOND_SECONDS, parameters=parameters)
        return await exchange.stack.enter_async_context(asked)

    def _answered(self, exchange: Exchange, answer: Answer) -> None:
        self._metrics.answer(answer.num_input_tokens, answer.num_output_tokens)
        exchange.note(
            prompt_tokens=answer.num_input_tokens,
            answer_tokens=answer.num_output_tokens,
            finish_reason=answer.finish_reason,
        )
        if exchange.place is not None:
            self._admission.answered(exchange.place)


class Pieces:
    """A stream that has begun: iterate over its texts, then read `answer`."""

    def __init__(
        self,
        stream: AsyncAnswerStream,
        first: str,
        deadline: float,
        came: Callable[[], None],
        answered: Callable[[Answer], None],
    ) -> None:
        self._stream = stream
        self._first = first
        self._deadline = deadline
        self._came = came
        self._answered = answered

    async def __aiter__(self) -> AsyncIterator[str]:
        """The texts.

        Raises:
            NvlmTrtError: the answer broke off.
            TimeoutError: it took longer than it may.
        """
        pieces, piece = aiter(self._stream), self._first
        while piece:
            yield piece
            async with asyncio.timeout_at(self._deadline):
                piece = await anext(pieces, "")
            if piece:
                self._came()

    def new_tokens(self) -> tuple[Token, ...]:
        """Tokens that came since this was asked last, where log-probabilities were asked for."""
        return self._stream.new_tokens()

    async def answer(self) -> Answer:
        """The whole answer, after its texts.

        Raises:
            NvlmTrtError: the answer broke off.
            TimeoutError: it took longer than it may.
        """
        async with asyncio.timeout_at(self._deadline):
            answer = await self._stream.answer()
        self._answered(answer)
        return answer
