"""One request and its answer, from the first byte to the last."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from nvlm_trt.gateway.admission import Place
from nvlm_trt.gateway.body import ClientGoneError
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.protocol import ABORT
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.tracing import UNTRACED, Span

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
KEY: Final = "nvlm.exchange"
LINGER_SECONDS: Final = 1.0
"""For how long the rest of a refused body is read, so that the client gets to read the refusal."""


class Exchange:
    """What the door, the routes and the metrics know of a request.

    Attributes:
        path: Of the request, decoded.
        method: Of the request.
        headers: Of the request, by lower-case names; the last of several.
        request_id: The client's X-Request-ID, or a new one.
        began: When it came, `time.monotonic()`.
        deadline: When its answer has to be complete, in the time of the event loop.
        body: The whole body, unpacked.
        place: That it has, where it makes the server work.
        status: Of the answer; None while it has not begun.
        given_up: Whether the client left its answer unread for too long.
        is_answered: Whether the answer is complete; the server then says that the client is gone, whether it is or not.
        places: What it takes of what others wait for: released when the last part of its answer is about to be sent, so
            that a client who has it and asks again is not in its own way.
        stack: What is released when the request has ended, however it ended.
        span: Its span.
        key: Beginning of the SHA-256 of its API key; None where no key is asked for, or none was good.
        first_text: When the first text of a stream came, `time.monotonic()`; None before.
        facts: What the log and the span tell of it: numbers and words of ours, nothing that the client wrote.
        error: Why it was not answered, in a word; None while it may still be.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: Limits, buffer: Callable[[int], None]
    ) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.began = time.monotonic()
        self.deadline = asyncio.get_running_loop().time() + limits.deadline
        self.body = b""
        self.place: Place | None = None
        self.status: int | None = None
        self.span: Span = UNTRACED
        self.key: str | None = None
        self.first_text: float | None = None
        self.facts: dict[str, str | int | float] = {}
        self.error: str | None = None
        self.given_up = False
        self.is_answered = False
        self.places = contextlib.ExitStack()
        self.stack = contextlib.AsyncExitStack()
        self.stack.callback(self.places.close)
        self.receive = receive
        self._send = send
        self._buffer = buffer
        self._held = 0
        self.stack.callback(lambda: buffer(-self._held))
        self._write_time = limits.write_time
        self._body_read = False
        scope[KEY] = self

    async def send(self, message: Message) -> None:
        """Send a part of the answer.

        Raises:
            ClientGoneError: the client does not read its answer.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self.request_id.encode())]}
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last:
            self.places.close()
        try:
            async with asyncio.timeout(self._write_time):
                await self._send(message)
        except TimeoutError:
            self.scope.get(ABORT, _nothing)()
            self.given_up = True
            raise ClientGoneError from None
        self.is_answered = self.is_answered or is_last

    def hold(self, size: int) -> None:
        """Note that so many bytes more, of its body or of its images, are held until it has ended.

        Raises:
            ApiError: 503, too many bytes are held already.
        """
        self._buffer(size)
        self._held += size

    @contextlib.contextmanager
    def reading_images(self) -> Iterator[None]:
        """For the time in which its images are read, which may take as long as somebody else's server likes."""
        if self.place is None:
            yield
            return
        self.place.reads_images = True
        try:
            yield
        finally:
            self.place.reads_images = False

    def note(self, **facts: str | int | float) -> None:
        """Add to what the log and the span tell."""
        self.facts.update(facts)

    def has_body(self, body: bytes) -> None:
        """Note that the body was read."""
        self.body, self._body_read = body, True

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; nothing to do where an answer has begun."""
        if self.status is not None:
            return
        body = error.body(self.path)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
        unread = not self._body_read and self._has_body
        if unread:
            headers["Connection"] = "close"
        packed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": packed})
        await self.send({"type": "http.response.body", "body": body, "more_body": unread})
        if unread:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._drain()
            await self.send({"type": "http.response.body", "body": b""})

    @property
    def _has_body(self) -> bool:
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    async def _drain(self) -> None:
        while (message := await self.receive()).get("more_body"):
            if message["type"] == "http.disconnect":
                return


def _nothing() -> None:
    """Stand in for an end of the connection, where the server offers none."""


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a request belongs to."""
    exchange = scope[KEY]
    assert isinstance(exchange, Exchange)
    return exchange
