"""Who may come in: API keys, and what each may do."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from nvlm_trt.errors import RequestError
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.settings import Limits, read_keys
from nvlm_trt.logs import fields

BEARER: Final = b"bearer "

LOOK_SECONDS: Final = 1.0
"""How often the file of keys is looked at, at most, and only when a client comes."""

State = tuple[int, ...]

log = logging.getLogger(__name__)


class KeyFile:
    """A file of keys that is read anew whenever it has changed; one that is at fault changes nothing.

    Args:
        file: As for `read_keys`. The first client has it read: it may have changed since the server read it.
        environment: As for `read_keys`.
        now: The clock, in seconds.
    """

    def __init__(
        self, file: Path, environment: Mapping[str, str] = os.environ, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._environment = environment
        self._now = now
        self._looked = -math.inf
        self._taken: State | None = None
        self._told: State | None = None

    def changed(self) -> tuple[str, ...] | None:
        """All keys if the file is another than before, else None; looks once in `LOOK_SECONDS` at most."""
        if self._now() - self._looked < LOOK_SECONDS:
            return None
        self._looked = self._now()
        state = self._state()
        if state == self._taken:
            return None
        try:
            keys = read_keys(self._file, self._environment)
        except RequestError as error:  # what keeps it from being read may pass: it is tried again
            if state != self._told:
                log.error("the API keys were not changed", extra=fields(reason=str(error)))
            self._told = state
            return None
        self._taken, self._told = state, None
        log.info("the API keys were read", extra=fields(api_keys=len(keys)))
        return keys

    def _state(self) -> State:
        """What differs when the file was written or another took its place."""
        try:
            seen = self._file.stat()
        except OSError:
            return ()
        return seen.st_ino, seen.st_mtime_ns, seen.st_size


class Client:
    """Whoever shows one key, or everybody where there are none.

    It has so many requests at once, and a bucket of tokens, filled steadily, of which each request takes one.

    Attributes:
        name: What logs call it: the beginning of its key's digest; None where there are no keys.
    """

    def __init__(self, name: str | None, limits: Limits, now: Callable[[], float]) -> None:
        self.name = name
        self._limits = limits
        self._now = now
        self._tokens = limits.key_per_minute or 0.0
        self._filled = now()
        self._present = 0

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A request of it.

        Raises:
            ApiError: 429, it has too many under way, or asks too often.
        """
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


class KeyRing:
    """API keys, and the client of each.

    Args:
        keys: The keys; with none everybody may come in, as one client.
        limits: How often, and how many requests at once.
        file: Where the keys are kept, if they are to be read anew when they change.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        keys: Sequence[str],
        limits: Limits,
        file: KeyFile | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._now = now
        self._file = file
        self._everybody = None if keys else Client(None, limits, now)
        self._clients: dict[bytes, Client] = {}
        self._set(keys)

    def check(self, authorization: bytes | None) -> Client:
        """The client that a header names.

        Raises:
            ApiError: 401, it names none.
        """
        if self._everybody is not None:
            return self._everybody
        if self._file is not None and (keys := self._file.changed()) is not None:
            self._set(keys)
        if authorization is None or not authorization.lower().startswith(BEARER):
            raise ApiError(401, "an API key is needed; expected: Authorization: Bearer <key>", code="invalid_api_key")
        digest = hashlib.sha256(authorization[len(BEARER) :].strip()).digest()
        # All are compared, each in constant time: how long it takes says nothing about any key.
        matches = [client for one, client in self._clients.items() if hmac.compare_digest(digest, one)]
        if not matches:
            raise ApiError(401, "the API key is not one of this server's", code="invalid_api_key")
        return matches[0]

    def _set(self, keys: Sequence[str]) -> None:
        """Have these keys; the client of one that was there already stays."""
        digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._clients = {
            digest: self._clients.get(digest) or Client(digest.hex()[:8], self._limits, self._now) for digest in digests
        }
