"""Who may come in, and how many at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from nvlm_trt.gateway.errors import ApiError, unavailable
from nvlm_trt.gateway.settings import Limits

BEARER = b"bearer "


class Admission:
    """Places for requests: some that the server works on, some that wait, no more.

    Args:
        limits: How many.

    Attributes:
        present: Requests that have a place.
        working: Requests that the server works on.
        buffered: Bytes of their bodies.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_concurrent)
        self.present = 0
        self.working = 0
        self.buffered = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place, at once or never.

        Raises:
            ApiError: 503, every place is taken.
        """
        if self.present >= self._limits.max_concurrent + self._limits.max_queue:
            raise unavailable("the server is busy; try again in a moment", "overloaded")
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until the server may be asked; in the order of coming."""
        async with self._slots:
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1

    def buffer(self, size: int) -> None:
        """Note bytes that are held; give them back with a negative size.

        Raises:
            ApiError: 503, too many bytes are held already.
        """
        if size > 0 and self.buffered + size > self._limits.max_buffered:
            raise unavailable("the server holds too many large requests; try again in a moment", "overloaded")
        self.buffered += size


class KeyRing:
    """API keys, and what each may do.

    Args:
        keys: The keys; with none everybody may come in, as one client.
        limits: How often, and how many requests at once.
        now: The clock, in seconds.
    """

    def __init__(self, keys: Sequence[str], limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._clients = [_Client(limits, now) for _ in keys] or [_Client(limits, now)]

    def check(self, authorization: bytes | None) -> int:
        """The number of the client that a header names.

        Raises:
            ApiError: 401, it names none.
        """
        if not self._digests:
            return 0
        if authorization is None or not authorization.lower().startswith(BEARER):
            raise ApiError(401, "an API key is needed; expected: Authorization: Bearer <key>", code="invalid_api_key")
        digest = hashlib.sha256(authorization[len(BEARER) :].strip()).digest()
        # All are compared, each in constant time: how long it takes says nothing about any key.
        matches = [hmac.compare_digest(digest, one) for one in self._digests]
        if not any(matches):
            raise ApiError(401, "the API key is not one of this server's", code="invalid_api_key")
        return matches.index(True)

    @contextlib.contextmanager
    def request(self, client: int) -> Iterator[None]:
        """A request of a client.

        Raises:
            ApiError: 429, it has too many under way, or asks too often.
        """
        with self._clients[client].request():
            yield


class _Client:
    """A bucket of tokens, filled steadily, one taken by each request."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._tokens = limits.key_per_minute or 0.0
        self._filled = now()
        self._present = 0

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        most, rate = self._limits.key_concurrent, self._limits.key_per_minute
        if most is not None and self._present >= most:
            sentence = f"too many requests at once; expected: at most {most}"
            raise ApiError(429, sentence, "rate_limit_error", "concurrency_limit_exceeded", retry_after=1)
        if rate is not None:
            self._take(rate)
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    def _take(self, rate: float) -> None:
        now = self._now()
        self._tokens = min(max(rate, 1.0), self._tokens + (now - self._filled) * rate / 60)
        self._filled = now
        if self._tokens < 1:
            sentence = f"too many requests; expected: at most {rate:g} a minute"
            wait = (1 - self._tokens) * 60 / rate
            raise ApiError(429, sentence, "rate_limit_error", "rate_limit_exceeded", retry_after=wait)
        self._tokens -= 1
