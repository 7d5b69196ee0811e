"""The asyncio client."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from nvlm_trt.client.address import channel_options, check_address
from nvlm_trt.client.request import MODEL, Image, Options, Turn, build_inputs
from nvlm_trt.client.response import Answer, AnswerBuilder, Token, error_of, silence
from nvlm_trt.serving.fields import CANCEL
from nvlm_trt.triton_streams import Connection, ResponseStream, tell


async def cancel(connection: Connection, request_id: str) -> None:
    """Ask the server to end the requests of an id; one that it has not begun it does not know.

    Raises:
        InferenceServerException, grpc.RpcError: it refused, or cannot be reached.
    """
    await tell(connection, _request([], request_id, {CANCEL: True}))


class AsyncAnswerStream:
    """An answer as it comes: iterate over its pieces, then await `answer`.

    An async context manager; leaving it early, or `close`, ends the request on the server; whoever waits for a piece
    then gets a ServerError.
    """

    def __init__(
        self,
        connection: Connection,
        inputs: list[triton.InferInput],
        idle_timeout: float,
        *,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self._idle_timeout = idle_timeout
        self._builder = AnswerBuilder()
        self._request_id = uuid.uuid4().hex
        self._connection = connection
        request = _request(inputs, self._request_id, parameters or {})
        self._stream = ResponseStream(connection, request)
        self._pieces = self._run()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def answer(self) -> Answer:
        """The whole answer; reads the rest of the stream first."""
        async for _ in self._pieces:
            pass
        return self._builder.finished()

    def new_tokens(self) -> tuple[Token, ...]:
        """Tokens that came since this was asked last, where `return_log_probs` asks for them."""
        return self._builder.new_tokens()

    async def close(self) -> None:
        """Have the request ended, without waiting for it; nothing to do when it has ended."""
        self._stream.give_up(asks=[self._cancel])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _cancel(self) -> None:
        await cancel(self._connection, self._request_id)

    async def _run(self) -> AsyncIterator[str]:
        try:
            while (result := await self._stream.read(self._idle_timeout)) is not None:
                if piece := self._builder.add(result):
                    yield piece
            self._builder.finished()
        except TimeoutError:
            raise silence(self._idle_timeout) from None
        except (InferenceServerException, grpc.RpcError) as error:
            raise error_of(error) from None
        finally:
            await self.close()


class AsyncNvlmClient:
    """Asks a served NVLM-D. Belongs to the event loop in which it is first used.

    Args:
        url: ``host:port`` of the server's gRPC.
        idle_timeout: Seconds without a token after which a request is given up; how long an answer takes as a whole
            does not count.

    Raises:
        UserError: the url is no such address.
    """

    def __init__(self, url: str, *, idle_timeout: float = 120.0) -> None:
        check_address(url)
        self._url, self._idle_timeout = url, idle_timeout
        self._connection: Connection | None = None

    async def generate(
        self,
        prompt: str,
        *,
        images: Sequence[Image] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        options: Options | None = None,
    ) -> Answer:
        """Ask and wait for the whole answer; arguments and errors as for `NvlmClient.generate`."""
        async with self.stream(prompt, images=images, history=history, system=system, options=options) as asked:
            return await asked.answer()

    def stream(
        self,
        prompt: str,
        *,
        images: Sequence[Image] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        options: Options | None = None,
    ) -> AsyncAnswerStream:
        """Ask and read the answer as it comes; arguments and errors as for `NvlmClient.generate`."""
        inputs = build_inputs(
            prompt, images=images, history=history, system=system, options=options or Options(), stream=True
        )
        if self._connection is None:  # it belongs to the running loop from here on
            self._connection = Connection(self._url, channel_options(self._url))
        return AsyncAnswerStream(self._connection, inputs, self._idle_timeout)

    async def close(self) -> None:
        """Close the connection, once the server has ended what was given up; ten seconds are the most that takes.

        The client may still be used, with a new one, in another event loop too.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _request(inputs: list[triton.InferInput], request_id: str, parameters: Mapping[str, str | bool]) -> dict[str, Any]:
    return {"model_name": MODEL, "inputs": inputs, "request_id": request_id, "parameters": dict(parameters)}
