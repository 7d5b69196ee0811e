"""Streams of responses over gRPC that are not cancelled while a response may be on its way.

A client that cancels such a stream can hang tritonserver for good, and with it every other stream: the thread that
learns of the cancellation takes the mutex of a request and then that of its stream
(`ModelStreamInferHandler::Process` of triton-inference-server/server, src/grpc/stream_infer_handler.cc), one that
writes a response takes them the other way round (`StateWriteResponse`). Seen with 2.51; the code of 26.x has the same
order. So who wants no more of an answer asks the models to end it, and reads on until they have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from nvlm_trt.error_codes import WANTED, code_and_message

CLOSING_SECONDS: Final = 10.0
"""A connection that is closed waits that long for its streams to end; a server that hangs ends none."""

SILENT_SECONDS: Final = 30.0
"""A stream that nobody wants any more is cancelled after that long without a sign of the server."""

AGAIN_SECONDS: Final = 0.1
"""From asking a model to end a request to asking it again: one that has not begun the request does not know it."""

ASK_SECONDS: Final = 5.0
"""A model that is asked to end a request has that long to say that it heard."""

Ask = Callable[[], Awaitable[None]]
"""Asks a model to end a request."""

log = logging.getLogger(__name__)


def note_not_ended(error: Exception) -> None:
    """Log that a model could not be asked to end a request: one line for what a server does that hangs or leaves."""
    if isinstance(error, TimeoutError):
        log.warning("a request that was given up could not be ended: no answer within %g s", ASK_SECONDS)
    elif isinstance(error, InferenceServerException | grpc.RpcError):
        log.warning("a request that was given up could not be ended: %s", " ".join(str(error).split()))
    else:
        log.warning("a request that was given up could not be ended", exc_info=error)


def with_status(error: InferenceServerException) -> InferenceServerException:
    """The error of a stream with the code that its text carries as its status, and the text without it.

    One that has a status is no model's: the stream broke.
    """
    if error.status() is not None:
        return error
    code, message = code_and_message(str(error.message()))
    return InferenceServerException(message, status=code)


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
        self._running: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what a stream needs, whatever becomes of who asks for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def await_end(self, task: asyncio.Task[None]) -> None:
        """Have `close` wait for a stream that comes to its end."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Close it, once its streams have ended that are given up or answered, or CLOSING_SECONDS are over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSING_SECONDS
        while self._ending and loop.time() < deadline:
            await asyncio.wait(self._ending, timeout=deadline - loop.time())
        await self.client.close()


class ResponseStream:
    """A request on a stream of its own. It is read as responses come, to the end, whether anybody wants them or not.

    Args:
        connection: Its connection.
        request: What tritonclient's `stream_infer` takes; emptied once it is sent. gRPC keeps its own form of it until
            the stream ends. Its model is asked for the codes of errors.
        on_response: Called with each response that comes, and at the end of the request.
    """

    def __init__(
        self,
        connection: Connection,
        request: dict[str, Any],
        on_response: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._on_response = on_response
        self._came: asyncio.Queue[triton.InferResult | Exception | None] = asyncio.Queue()
        self._over = asyncio.Event()
        self._sent = self._given_up = False
        self._silence: asyncio.TimerHandle | None = None
        request["parameters"] = {**request.get("parameters", {}), WANTED: True}
        self._responses = connection.client.stream_infer(self._requests(request))
        self._reading = connection.run(self._read())

    async def read(self, seconds: float | None = None) -> triton.InferResult | None:
        """The next response, or None after the last one. Who is cancelled while it waits does not end the stream.

        Args:
            seconds: To wait for it; None for any time.

        Raises:
            TimeoutError: nothing came.
            InferenceServerException, grpc.RpcError: the request failed, or the stream broke.
        """
        async with asyncio.timeout(seconds):
            came = await self._came.get()
        if came is None:
            self._came.put_nowait(None)
        if isinstance(came, Exception):
            raise came
        return came

    def give_up(self, *, asks: Sequence[Ask] = (), after: float = 0.0) -> None:
        """Have the request ended, and its responses dropped; nothing to do where it has ended.

        Args:
            asks: Ask models to end it; each is called until it has ended.
            after: Seconds before they are called first.
        """
        if self._over.is_set() or self._given_up:
            return
        self._given_up = True
        while not self._came.empty():
            self._came.get_nowait()
        self._came.put_nowait(None)
        self._come_to_an_end()
        # What was not sent has no response on its way: it may be cancelled, and must not wait for a server. The loop
        # hears of the sending a moment late.
        if not self._sent:
            self._responses.cancel()
            return
        for ask in asks:
            self._connection.run(self._ask(ask, after))

    async def _ask(self, ask: Ask, after: float) -> None:
        await asyncio.sleep(after)
        noted = False
        while not self._over.is_set():
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    await ask()
            except Exception as error:
                if not noted:
                    note_not_ended(error)
                noted = True
            await asyncio.sleep(AGAIN_SECONDS)

    async def _read(self) -> None:
        """Take responses to the stream's status: who closes the connection before it would cancel the stream."""
        try:
            async for result, error in self._responses:
                self._take(result, error)
        except grpc.RpcError as error:
            self._put(error)
        finally:
            self._end()
            if self._silence is not None:
                self._silence.cancel()

    def _take(self, result: triton.InferResult | None, error: InferenceServerException | None) -> None:
        if self._given_up:
            self._come_to_an_end()
        self._put(result if error is None else with_status(error))
        if result is None or error is not None or is_last(result):
            self._end()
        elif self._on_response is not None:
            self._on_response()

    def _put(self, came: triton.InferResult | Exception | None) -> None:
        if not (self._given_up or self._over.is_set()):
            self._came.put_nowait(came)

    def _end(self) -> None:
        """Note that the request has ended; the stream has not."""
        if not self._over.is_set():
            self._put(None)
            self._over.set()
            self._come_to_an_end()
            if self._on_response is not None:
                self._on_response()

    def _come_to_an_end(self) -> None:
        """Let the stream be silent for SILENT_SECONDS from now on, and no longer."""
        self._connection.await_end(self._reading)
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._responses.cancel)

    async def _requests(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield request
        self._sent = True
        request.clear()
        await self._over.wait()  # the server may drop responses of a stream whose sending side has ended


async def tell(connection: Connection, request: dict[str, Any]) -> None:
    """Send a request whose answer says nothing, and wait for it.

    Raises:
        InferenceServerException, grpc.RpcError: it failed, or the stream broke.
    """
    stream = ResponseStream(connection, request)
    try:
        while await stream.read() is not None:
            continue
    finally:
        stream.give_up()
