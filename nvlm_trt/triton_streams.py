"""Streams of responses over gRPC that are never cancelled.

A client that cancels a gRPC stream can hang tritonserver for good, and with it every other stream: the thread that
learns of the cancellation takes the mutex of a request and then that of its stream
(`ModelStreamInferHandler::Process` of triton-inference-server/server, src/grpc/stream_infer_handler.cc), one that
writes a response takes them the other way round (`StateWriteResponse`). Seen with 2.51; the code of 26.x has the same
order. So who wants no more of an answer asks the model to end it, and reads on until it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Final

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

FINAL: Final = "triton_final_response"
"""Parameter of a response: whether it is the last one to its request."""

CLOSING_SECONDS: Final = 10.0
"""A connection that is closed waits that long for streams that are being ended; a server that hangs ends none."""

_Response = tuple[triton.InferResult | None, InferenceServerException | None]


class Connection:
    """A gRPC connection to tritonserver. Belongs to the event loop in which it is made.

    Args:
        url: ``host:port``.
        channel_args: Options of the channel.

    Attributes:
        client: Of tritonclient.
    """

    def __init__(self, url: str, channel_args: Sequence[tuple[str, Any]]) -> None:
        self.client = triton.InferenceServerClient(url, channel_args=channel_args)
        self._beside: set[asyncio.Task[None]] = set()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work on this connection go on whatever becomes of who began it."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """Close it, once the streams that are being ended have ended."""
        if self._beside:
            await asyncio.wait(self._beside, timeout=CLOSING_SECONDS)
        await self.client.close()


class ResponseStream:
    """A stream with one request, and with those that are sent after it.

    Args:
        connection: Its connection.
        request: What tritonclient's `stream_infer` takes; emptied once it is sent, for gRPC keeps it to the end of the
            stream, and pixels with it.
        headers: Of the stream.
    """

    def __init__(self, connection: Connection, request: dict[str, Any], headers: Mapping[str, str]) -> None:
        self._unsent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._unsent.put_nowait(request)
        self._unanswered = 1
        self._responses = connection.client.stream_infer(self._requests(), headers=headers)
        self._reading: asyncio.Task[_Response] | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing comes any more: each request has had its last response, or the stream broke."""
        return self._unanswered == 0

    def send(self, request: dict[str, Any]) -> None:
        """Send another request."""
        self._unanswered += 1
        self._unsent.put_nowait(request)

    async def read(self, seconds: float | None = None) -> triton.InferResult | None:
        """The next response, or None where the stream ended. Who is cancelled while it waits does not end the stream.

        Args:
            seconds: To wait for it; None for any time.

        Raises:
            TimeoutError: nothing came.
            InferenceServerException, grpc.RpcError: a request failed, or the stream broke.
        """
        if self._reading is None:  # a task of its own: gRPC cancels a stream whose reader is cancelled
            self._reading = asyncio.create_task(self._receive())
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        if not done:
            raise TimeoutError
        reading, self._reading = self._reading, None
        try:
            result, error = reading.result()
            if error is not None:
                raise error
        except (InferenceServerException, grpc.RpcError):
            self._end()
            raise
        if result is None:
            self._end()
        elif result.get_response().parameters[FINAL].bool_param:
            self._unanswered -= 1
            if self.complete:
                self._end()
        return result

    async def drain(self) -> None:
        """Read and drop what still comes, to the end of the stream."""
        try:
            while await self.read() is not None:
                continue
        except (InferenceServerException, grpc.RpcError):
            return

    async def _receive(self) -> _Response:
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            return None, None

    def _end(self) -> None:
        self._unanswered = 0
        self._unsent.put_nowait(None)

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        # Its end waits for the last response: the server may drop responses of a stream whose sending side has ended.
        while (request := await self._unsent.get()) is not None:
            yield request
            request.clear()
