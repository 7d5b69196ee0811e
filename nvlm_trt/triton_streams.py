"""Streams of responses over gRPC that are not cancelled while a response may be on its way.

A client that cancels such a stream can hang tritonserver for good, and with it every other stream: the thread that
learns of the cancellation takes the mutex of a request and then that of its stream
(`ModelStreamInferHandler::Process` of triton-inference-server/server, src/grpc/stream_infer_handler.cc), one that
writes a response takes them the other way round (`StateWriteResponse`). Seen with 2.51; the code of 26.x has the same
order. So who wants no more of an answer asks the models to end it, and reads on until they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

CLOSING_SECONDS: Final = 10.0
"""A connection that is closed waits that long for its streams to end; a server that hangs ends none."""

AGAIN_SECONDS: Final = 0.1
"""From asking a model to end a request to asking it again: one that has not begun the request does not know it."""

Ask = Callable[[], Awaitable[None]]
"""Asks a model to end a request."""

_Response = tuple[triton.InferResult | None, InferenceServerException | None]


def is_last(result: triton.InferResult) -> bool:
    """Whether a response is the last one to its request. One without tensors is not sent to asyncio clients."""
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


class Connection:
    """A gRPC connection to tritonserver. Belongs to the event loop in which its streams are.

    Args:
        url: ``host:port``.
        channel_args: Options of the channel.

    Attributes:
        client: Of tritonclient.
    """

    def __init__(self, url: str, channel_args: Sequence[tuple[str, Any]]) -> None:
        self.client = triton.InferenceServerClient(url, channel_args=channel_args)
        self._ending: set[asyncio.Task[None]] = set()

    def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what ends a stream, whatever becomes of who asks for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Close it, once its streams have ended or CLOSING_SECONDS are over."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSING_SECONDS)
        await self.client.close()


class ResponseStream:
    """A stream with one request, and with the one that ends it early.

    Args:
        connection: Its connection.
        request: What tritonclient's `stream_infer` takes; emptied once it is sent. gRPC keeps its own form of it until
            the stream ends.
        headers: Of the stream.
        on_response: Called with each response that comes, and at the end of the stream.
    """

    def __init__(
        self,
        connection: Connection,
        request: dict[str, Any],
        headers: Mapping[str, str],
        on_response: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._on_response = on_response
        self._unsent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._unanswered = 0
        self._send(request)
        self._sent = self._over = self._given_up = False
        self._responses = connection.client.stream_infer(self._requests(), headers=headers)
        self._one_at_a_time = asyncio.Lock()
        self._reading: asyncio.Task[_Response] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing comes any more: each request has had its last response, or one of them failed."""
        return self._over

    async def read(self, seconds: float | None = None) -> triton.InferResult | None:
        """The next response, or None where the stream ended. Who is cancelled while it waits does not end the stream.

        Args:
            seconds: To wait for it; None for any time.

        Raises:
            TimeoutError: nothing came.
            InferenceServerException, grpc.RpcError: a request failed, or the stream broke.
        """
        async with self._one_at_a_time:
            if self._reading is None:  # a task of its own: gRPC cancels a stream whose reader is cancelled
                self._reading = asyncio.create_task(self._receive())
            done, _ = await asyncio.wait({self._reading}, timeout=seconds)
            if not done:
                raise TimeoutError
            reading, self._reading = self._reading, None
        try:
            result, error = (None, None) if reading.cancelled() else reading.result()
            if error is not None:
                raise error
        except (InferenceServerException, grpc.RpcError):
            self._end()
            raise
        if result is not None and is_last(result):
            self._unanswered -= 1
        if result is None or self._unanswered == 0:
            self._end()
        elif self._on_response is not None:
            self._on_response()
        return result

    def give_up(self, request: dict[str, Any] | None = None, *, asks: Sequence[Ask] = (), after: float = 0.0) -> None:
        """Have the request ended; nothing to do where the stream is over.

        Args:
            request: Sent on the stream, to end it.
            asks: Ask other models to end it; each is called until the stream is over.
            after: Seconds before they are called first.
        """
        if self._over or self._given_up:
            return
        self._given_up = True
        if not self._sent:  # no response can be on its way: it may be cancelled, and must not wait for a server
            self._responses.cancel()
        elif request is not None:
            self._send(request)
        self._connection.end(self._drain())
        for ask in asks:
            self._connection.end(self._ask(ask, after))

    def _send(self, request: dict[str, Any]) -> None:
        self._unanswered += 1
        self._unsent.put_nowait(request)

    async def _ask(self, ask: Ask, after: float) -> None:
        await asyncio.sleep(after)
        while not self._over:
            await ask()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _drain(self) -> None:
        """Read and drop what still comes, to the end of the stream."""
        try:
            while await self.read() is not None:
                continue
        except (InferenceServerException, grpc.RpcError):
            self._responses.cancel()  # a server that is ending takes no request any more, and so none that ends another

    async def _receive(self) -> _Response:
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            return None, None

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._unsent.put_nowait(None)
            if not self._given_up:
                self._connection.end(self._drain())  # to its status: closing the channel before would cancel it
            if self._on_response is not None:
                self._on_response()

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        # Its end waits for the last response: the server may drop responses of a stream whose sending side has ended.
        while (request := await self._unsent.get()) is not None:
            yield request
            self._sent = True
            request.clear()
