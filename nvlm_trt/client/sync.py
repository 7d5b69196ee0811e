"""The blocking client."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from nvlm_trt.client.address import channel_options, check_address
from nvlm_trt.client.request import MODEL, Image, Options, Turn, build_inputs
from nvlm_trt.client.response import Answer, AnswerBuilder, error_of, silence
from nvlm_trt.error_codes import WANTED
from nvlm_trt.serving.fields import CANCEL
from nvlm_trt.triton_streams import AGAIN_SECONDS, is_last, with_status

ENDING_SECONDS: Final = 10.0
"""The end of a request that is given up is waited for that long; a server that runs comes to it in 0.2 s."""

_Event = tuple[triton.InferResult | None, InferenceServerException | None]


class Connections:
    """Clients of tritonclient that are free: each can have one stream at a time, and opening one takes a while.

    Args:
        url: ``host:port`` of the server's gRPC.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: queue.SimpleQueue[triton.InferenceServerClient] = queue.SimpleQueue()
        self._closed = False

    def take(self) -> triton.InferenceServerClient:
        """A client without a stream."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return triton.InferenceServerClient(self._url, channel_args=channel_options(self._url))

    def give_back(self, client: triton.InferenceServerClient, *, ended: bool) -> None:
        """Take a client back.

        Args:
            client: With a stream.
            ended: Whether what was asked on it has ended. If not, the stream is cancelled.
        """
        try:
            if ended:  # the server has yet to say so; in a thread, for that is waited for without a limit
                ending = threading.Thread(target=client.stop_stream, daemon=True)
                ending.start()
                ending.join(ENDING_SECONDS)
        finally:
            client.stop_stream(cancel_requests=True)  # nothing to do where it has ended
            self._free.put(client)
            if self._closed:
                self.close()

    def cancel(self, request_id: str, seconds: float) -> None:
        """Ask the server to end a request; it may be asked of one that has not begun it, and then does nothing.

        Args:
            request_id: Of the request.
            seconds: To wait for the server to have heard it.
        """
        client, heard = self.take(), threading.Event()
        answered = False
        try:
            client.start_stream(lambda result, error: heard.set())
            client.async_stream_infer(
                MODEL, [], request_id=request_id, enable_empty_final_response=True, parameters={CANCEL: True}
            )
            answered = heard.wait(seconds)
        except InferenceServerException:
            answered = True  # the stream is broken
        finally:
            self.give_back(client, ended=answered)

    def close(self) -> None:
        """Close the clients that are free, and from now on each that is given back."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()


class AnswerStream:
    """An answer as it comes: iterate over its pieces, then read `answer`.

    A context manager; leaving it early, or `close`, ends the request on the server.
    """

    def __init__(self, connections: Connections, inputs: list[triton.InferInput], idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._connections = connections
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._over = threading.Event()
        self._builder = AnswerBuilder()
        self._closed = False
        self._request_id = uuid.uuid4().hex
        self._client = connections.take()
        try:
            self._client.start_stream(self._put)
            self._client.async_stream_infer(
                MODEL,
                inputs,
                request_id=self._request_id,
                enable_empty_final_response=True,
                parameters={WANTED: True},
            )
        except InferenceServerException as error:
            cause = self._cause(error)
            self._over.set()
            self.close()
            raise error_of(cause) from None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the rest of the stream first."""
        for _ in self._pieces:
            pass
        return self._builder.finished()

    def close(self) -> None:
        """End the request; nothing to do when it has ended. Another thread that waits for a piece gets an error."""
        if self._closed:
            return
        self._closed = True
        self._events.put((None, None))
        try:
            self._end()
        finally:  # somebody may not want to wait for that
            self._connections.give_back(self._client, ended=self._over.is_set())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        """Have the server end the request, where it has not ended."""
        deadline = time.monotonic() + min(self._idle_timeout, ENDING_SECONDS)
        while not self._over.is_set() and (left := deadline - time.monotonic()) > 0:
            self._connections.cancel(self._request_id, left)
            self._over.wait(AGAIN_SECONDS)

    def _put(self, result: triton.InferResult | None, error: InferenceServerException | None) -> None:
        self._events.put((result, error and with_status(error)))
        if result is None or is_last(result):
            self._over.set()

    def _run(self) -> Iterator[str]:
        try:
            last = False
            while not last:
                result = self._next()
                last = is_last(result)
                if piece := self._builder.add(result):
                    yield piece
            self._builder.finished()
        finally:
            self.close()

    def _next(self) -> triton.InferResult:
        try:
            result, error = self._events.get(timeout=self._idle_timeout)
        except queue.Empty:
            raise silence(self._idle_timeout) from None
        if self._closed or result is None:
            raise error_of(error or InferenceServerException("the answer was closed"))
        return result

    def _cause(self, error: InferenceServerException) -> InferenceServerException:
        """What broke the stream: tritonclient's reader says it, its writer only knows that it is broken."""
        try:
            return self._events.get(timeout=1.0)[1] or error
        except queue.Empty:
            return error


class NvlmClient:
    """Asks a served NVLM-D. May be used from several threads.

    Args:
        url: ``host:port`` of the server's gRPC.
        idle_timeout: Seconds without a token after which a request is given up; how long an answer takes as a whole
            does not count.

    Raises:
        UserError: the url is no such address.
    """

    def __init__(self, url: str, *, idle_timeout: float = 120.0) -> None:
        check_address(url)
        self._connections = Connections(url)
        self._idle_timeout = idle_timeout

    def generate(
        self,
        prompt: str,
        *,
        images: Sequence[Image] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        options: Options | None = None,
    ) -> Answer:
        """Ask and wait for the whole answer.

        Args:
            prompt: The question; ``<image>`` marks the place of an image.
            images: Paths, files' bytes or PIL images, in the order of their marks.
            history: Earlier questions and answers, oldest first.
            system: The system message in place of the release's own.
            options: How the answer is made.

        Raises:
            RequestError: the server refused the request.
            ImageRejected: an image cannot be read here.
            ServerError: the server failed, cannot be reached, or fell silent.
        """
        return self.stream(prompt, images=images, history=history, system=system, options=options).answer

    def stream(
        self,
        prompt: str,
        *,
        images: Sequence[Image] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        options: Options | None = None,
    ) -> AnswerStream:
        """Ask and read the answer as it comes; arguments and errors as for `generate`."""
        inputs = build_inputs(
            prompt, images=images, history=history, system=system, options=options or Options(), stream=True
        )
        return AnswerStream(self._connections, inputs, self._idle_timeout)

    def close(self) -> None:
        """Close the connections; the client may still be used, with new ones."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
