"""HTTP as uvicorn speaks it, with bounds on what no application sees: headers, chunks, trailers, idle connections."""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nvlm_trt.gateway.settings import Limits

REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"

ABORT: Final = "nvlm.abort"
"""Key of the scope: ends the connection at once; closing it would wait for a client that reads nothing."""

CHUNK_ROOM: Final = 16
"""Bytes of a chunk that are not its data, without extensions: its size in up to eight digits and two line ends are 12.
"""

MAX_AHEAD: Final = 16
"""Requests that a client may send ahead of the answer to the one before them; they wait outside of any other bound."""

WRITE_STEP: Final = 1 << 16
"""Bytes of an answer's end that are read within the time for it, or all: as many as of an answer under way."""

LOOK_SECONDS: Final = 0.5
"""Between two looks at whether a client that pipelines is still there."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within limits.

    The C parser that it uses has no bounds of its own, and uvicorn waits for the rest of a header for ever. What a
    parser's callback raises becomes a refusal of the request.

    Of a connection's requests uvicorn tells the last one alone that the connection is lost, and reads nothing while one
    is answered and others wait, so that it does not see the loss either: here every open one is told, and meanwhile the
    socket is looked at. (A client that closes with more unsent than its and our socket's buffers hold says nothing.)

    An offer to go on in another protocol is not taken, as HTTP allows: Java's HttpClient offers HTTP/2 with every first
    request. The parser takes what follows such a head for that protocol, and uvicorn loses it or reads requests in it.
    """

    limits: Limits
    _reading_head = True
    _framing = 0
    _chunks = 0
    _refused = False
    _timer: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _open: deque[RequestResponseCycle]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        self._open = deque()
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell every request of it that is not answered yet."""
        self._cancel_timer()
        for timer in (self._look, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        for cycle in self._open:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take bytes; of those of a request, all that are not its body are counted: no callback tells of each."""
        if self._refused:
            return
        self._framing += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._refused:
            return
        if self._framing > self.limits.max_header_bytes:
            self._refuse(b"431 Request Header Fields Too Large", b"the headers or trailers are too large")
        elif self._timer is None and self.cycle.response_complete:
            self._expect_head()  # it may be a line end alone: uvicorn's time for idle connections ended with it

    def _parse(self, data: bytes) -> None:
        """Parse bytes; a head that offers another protocol is parsed anew without the offer, before what follows it."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                version = self.parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
                lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
                data = data[offer.args[0] :]
            else:
                return

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
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")
        if self.parser.should_upgrade():
            return  # it comes again, without the offer
        self._cancel_timer()
        super().on_headers_complete()
        while self._open and self._open[0].response_complete:  # they are answered in their order
            self._open.popleft()
        self._open.append(self.cycle)
        if len(self.pipeline) > MAX_AHEAD:
            raise ValueError("too many requests are sent ahead")
        if self.pipeline and self._look is None:
            self._look_later()

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
        if self.parser.should_upgrade():
            return  # it is not: what the parser takes for the end is that of the head
        self._framing = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer's end is written, though maybe not read: a client that reads nothing holds up every close."""
        if self._unread is not None:
            self._unread.cancel()
        self._expect_reading()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        self._refuse(b"400 Bad Request", b"the request is not HTTP, or beyond the limits of headers and chunks")

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_time, self._head_overdue)

    def _head_overdue(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _expect_reading(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self.limits.write_time, self._reading_overdue, unsent) if unsent else None

    def _reading_overdue(self, unsent: int) -> None:
        self._unread = None
        if not self.cycle.response_complete:
            return  # what comes after that answer waits for the client itself
        if unsent - self.transport.get_write_buffer_size() < min(unsent, WRITE_STEP):
            self.transport.abort()
        else:
            self._expect_reading()

    def _look_later(self) -> None:
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_now)

    def _look_now(self) -> None:
        """Close the connection if the client has, as asyncio does where it reads; what is unread hides nothing."""
        self._look = None
        if not self.pipeline or self.transport.is_closing():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLRDHUP)
        if poll.poll(0):
            self.transport.close()
        else:
            self._look_later()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes, sentence: bytes) -> None:
        self._refused = True
        started: Any = self.cycle
        if not self.pipeline and (started is None or not started.response_started):  # else answers are due before it
            body = b'{"error": {"message": "%s", "type": "invalid_request_error", "param": null, "code": null}}'
            body %= sentence
            self.transport.write(REFUSAL % (status, len(body), body))
        self.transport.close()


def bounded_protocol(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with its limits: uvicorn makes one for each connection, with arguments of its own."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})
