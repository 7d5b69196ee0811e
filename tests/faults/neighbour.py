"""A client that behaves, and streams all the while that others do not."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .wire import CHAT

LONG = {
    "model": "nvlm",
    "messages": [{"role": "user", "content": "Tell me about the sea"}],
    "max_tokens": 400,
    "stream": True,
    "ignore_eos": True,
}
SHORT = {**LONG, "max_tokens": 100}
"""What it asks: watching it means to wait for the end of a stream."""


@dataclass(frozen=True)
class Seen:
    """What it saw in a while.

    Attributes:
        tokens: Events that came.
        largest_gap_ms: The longest wait for one, the first of a stream included.
        finished: Streams that ended, each with the right text.
        faults: What went wrong with others.
    """

    tokens: int
    largest_gap_ms: float
    finished: int
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"none; largest gap of a stream {self.largest_gap_ms:.0f} ms"


class Neighbour:
    """Streams the same answer again and again from a thread of its own, while it is `present`.

    Args:
        address: ``host:port`` of the gateway.
        headers: Of its requests.
    """

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        self._address = address
        self._headers = headers or {}
        self._times: list[tuple[float, float]] = []
        self._ends: list[tuple[float, str]] = []
        self._stopped = threading.Event()
        self._may_ask = threading.Event()
        self._at_rest = threading.Event()
        self.expected = self._stream()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the stream that runs."""
        self._stopped.set()
        self._may_ask.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Stream for a while; the last one may end later."""
        self._may_ask.set()
        try:
            yield
        finally:
            self._may_ask.clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let nobody be there for a while."""
        self._may_ask.clear()
        assert self._thread.ident is None or self._at_rest.wait(30)
        try:
            yield
        finally:
            self._may_ask.set()

    def seen(self, since: float, *, within: float = 30) -> Seen:
        """What it has seen since a time of `time.monotonic`; waits for the end of the stream that runs now."""
        now = time.monotonic()
        while not any(end >= now for end, _ in list(self._ends)):
            assert time.monotonic() - now < within, "the stream of a client that behaves came to no end"
            time.sleep(0.005)
        gaps = [gap for at, gap in list(self._times) if since <= at <= now + gap]
        ends = [said for at, said in list(self._ends) if at >= since]
        faults = tuple(said for said in ends if said)
        return Seen(len(gaps), max(gaps, default=0.0) * 1000, len(ends) - len(faults), faults)

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not self._may_ask.is_set():
                self._at_rest.set()
                self._may_ask.wait()
                self._at_rest.clear()
                continue
            try:
                text = self._stream()
                said = "" if text == self.expected else f"a wrong answer: {text[:80]!r}"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                time.sleep(0.05)
            self._ends.append((time.monotonic(), said))

    def _stream(self) -> str:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        began = time.monotonic()
        try:
            connection.request("POST", CHAT, json.dumps(SHORT), self._headers)
            answer = connection.getresponse()
            assert answer.status == 200, f"status {answer.status}: {answer.read()[:200]!r}"
            return self._read(answer, began)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, last: float) -> str:
        texts: list[str] = []
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            self._times.append((now, now - last))
            last = now
            if line == b"data: [DONE]\n":
                return "".join(texts)
            event = json.loads(line[6:])
            assert "error" not in event, event
            texts += [choice["delta"].get("content") or "" for choice in event["choices"]]
        raise AssertionError("a stream without an end mark")
