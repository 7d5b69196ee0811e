"""HTTP as uvicorn speaks it, with bounds on what no application sees: headers, chunks, trailers, idle connections."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nvlm_trt.gateway.settings import Limits

REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"

ABORT: Final = "nvlm.abort"
"""Key of the scope: ends the connection at once; closing it would wait for a client that reads nothing."""

CHUNK_ROOM: Final = 16
"""Bytes of a chunk that are not its data, without extensions: its size in up to eight digits and two line ends are 12.
"""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within limits.

    The C parser that it uses has no bounds of its own, and uvicorn waits for the rest of a header for ever. What a
    parser's callback raises becomes a refusal of the request.
    """

    limits: Limits
    _reading_head = True
    _framing = 0
    _chunks = 0
    _refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; of those of a request, all that are not its body are counted: no callback tells of each."""
        if self._refused:
            return
        self._framing += len(data)
        super().data_received(data)
        if self._refused:
            return
        if self._framing > self.limits.max_header_bytes:
            self._refuse(b"431 Request Header Fields Too Large", b"the headers or trailers are too large")
        elif self._timer is None and self.cycle.response_complete:
            self._expect_head()  # it may be a line end alone: uvicorn's time for idle connections ended with it

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._reading_head, self._chunks = True, 0
        self.scope[ABORT] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        if self._timer is None:
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, within their limit; a trailer is left out: it came after what headers are read for."""
        if not self._reading_head:
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers:
            raise ValueError("there are too many headers")

    def on_headers_complete(self) -> None:
        """The head is there, within its limit; the body has a time of its own."""
        self._reading_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.max_header_bytes:
            raise ValueError("the head is too large")
        self._cancel_timer()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count the chunks of a body."""
        self._chunks += 1
        if self._chunks > self.limits.max_chunks:
            raise ValueError("the body comes in too many chunks")
        self._framing = max(0, self._framing - CHUNK_ROOM)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; the application counts it."""
        self._framing = max(0, self._framing - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete; what follows in the same segment, which is bounded, belongs to the next one."""
        self._framing = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        self._refuse(b"400 Bad Request", b"the request is not HTTP, or beyond the limits of headers and chunks")

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_time, self._head_overdue)

    def _head_overdue(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes, sentence: bytes) -> None:
        self._refused = True
        started: Any = self.cycle
        if started is None or not started.response_started:
            body = b'{"error": {"message": "%s", "type": "invalid_request_error", "param": null, "code": null}}'
            body %= sentence
            self.transport.write(REFUSAL % (status, len(body), body))
        self.transport.close()


def bounded_protocol(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with its limits: uvicorn makes one for each connection, with arguments of its own."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})
