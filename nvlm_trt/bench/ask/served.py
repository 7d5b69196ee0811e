"""Ask a served NVLM-D over gRPC or HTTP, streaming, and take the times as a client sees them."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from nvlm_trt.bench.record import RequestRecord
from nvlm_trt.bench.workload import Question
from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.client.request import MODEL
from nvlm_trt.errors import RequestError, ServerError

STREAM_PATH: Final = f"/v2/models/{MODEL}/generate_stream"
EVENT: Final = b"data: "
SILENCE_S: Final = 600.0
"""Seconds without a piece of text after which a request is given up: a long queue may stand before it."""


class _Times:
    """Arrivals of the pieces of text, and the end."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._arrivals: list[float] = []

    def piece(self, text: str) -> None:
        """A piece has come."""
        if text:
            self._arrivals.append(time.perf_counter() - self._started)

    def record(self, question: Question, prompt_tokens: int, output_tokens: int) -> RequestRecord:
        """The request, which ends now; an answer without any text has its first token at its end."""
        whole = time.perf_counter() - self._started
        return RequestRecord(
            ttft_s=self._arrivals[0] if self._arrivals else whole,
            total_s=whole,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            images=len(question.images),
            arrivals_s=tuple(self._arrivals),
        )


class GrpcAsker:
    """Through nvlm_trt/client.

    Args:
        url: ``host:port`` of gRPC.
        max_tokens: Tokens of an answer whose question says nothing; the end of turn is forbidden before.
    """

    def __init__(self, url: str, max_tokens: int) -> None:
        self._client = NvlmClient(url, idle_timeout=SILENCE_S)
        self._max_tokens = max_tokens

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""
        length = question.max_tokens or self._max_tokens
        options = Options(max_tokens=length, min_tokens=length)
        times = _Times()
        with self._client.stream(
            question.text, images=question.images, history=question.history, options=options
        ) as stream:
            for piece in stream:
                times.piece(piece)
            answer = stream.answer
            return times.record(question, answer.num_input_tokens, answer.num_output_tokens)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class HttpAsker:
    """Through generate_stream, Triton's server-sent events, a connection for each request as curl does it.

    Args:
        url: ``host:port`` of HTTP.
        max_tokens: Tokens of an answer whose question says nothing; the end of turn is forbidden before.
    """

    def __init__(self, url: str, max_tokens: int) -> None:
        self._url = url
        self._max_tokens = max_tokens

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer.

        Raises:
            RequestError: the server refused the request.
            ServerError: the server failed or cannot be reached.
        """
        times = _Times()
        images = [base64.b64encode(data).decode() for data in question.images]
        length = question.max_tokens or self._max_tokens
        body = {**_said(question), "max_tokens": length, "min_tokens": length, "stream": True}
        last: dict[str, Any] = {}
        for event in self._events(json.dumps({**body, "image_bytes": images} if images else body)):
            times.piece(event.get("text_output", ""))
            last = event if event.get("finish_reason") else last
        if not last:
            raise ServerError("the answer broke off", fix="see the server's log")
        return times.record(question, int(last["num_input_tokens"]), int(last["num_output_tokens"]))

    def close(self) -> None:
        """Nothing is left to close."""

    def _events(self, body: str) -> Iterator[dict[str, Any]]:
        """The events of one call."""
        try:
            with closing(http.client.HTTPConnection(self._url, timeout=SILENCE_S)) as connection:
                connection.request("POST", STREAM_PATH, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                for line in response:
                    if line.startswith(EVENT) or response.status != http.HTTPStatus.OK:
                        yield self._event(line.removeprefix(EVENT), response.status)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"the server cannot be reached ({error})", seen=self._url) from None

    def _event(self, line: bytes, status: int) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            kind = RequestError if 400 <= status < 500 else ServerError
            raise kind(f"the server refused the request: {event['error']}", seen=f"HTTP {status}")
        return event


def _said(question: Question) -> dict[str, str]:
    """The field that holds the message, or the whole conversation where there is a history."""
    if not question.history:
        return {"text_input": question.text}
    turns = [zip(("user", "assistant"), turn, strict=True) for turn in question.history]
    said = [*(pair for turn in turns for pair in turn), ("user", question.text)]
    return {"messages": json.dumps([{"role": role, "content": text} for role, text in said])}
