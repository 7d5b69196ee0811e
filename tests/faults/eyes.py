"""Who looks at a server that is hurt: probes of every level, and clients with streams under way."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.errors import NvlmTrtError

from .neighbour import LONG
from .served import Served
from .wire import CHAT

LOOK_SECONDS = 0.03


class Eyes:
    """Asks each level again and again whether it is ready; a context manager.

    Attributes:
        levels: Answers by level, each a list of times and whether it was ready, one for each change.
    """

    def __init__(self, served: Served) -> None:
        self.levels: dict[str, list[tuple[float, bool]]] = {}
        self._stopped = threading.Event()
        looks: dict[str, Callable[[], bool]] = {
            path: _http(served.http, path)
            for path in ("/health/ready", "/v2/health/ready", "/v2/models/nvlm/ready", "/v2/models/ensemble/ready")
        }
        looks |= {"gRPC server": _grpc(served.grpc, None), "gRPC nvlm": _grpc(served.grpc, "nvlm")}
        self._threads = [threading.Thread(target=self._run, args=one, daemon=True) for one in looks.items()]
        for level in looks:
            self.levels[level] = []

    def unready_after(self, since: float) -> dict[str, float]:
        """Seconds from a time of `time.monotonic` to the first time that each level was not ready."""
        first = {
            level: next((at for at, ready in seen if at >= since and not ready), None)
            for level, seen in self.levels.items()
        }
        return {level: at - since for level, at in first.items() if at is not None}

    def ready_again_after(self, since: float) -> float | None:
        """Seconds from a time to when all levels were ready, after they had not been; None while they are not."""
        if len(self.unready_after(since)) < len(self.levels) or not all(seen[-1][1] for seen in self.levels.values()):
            return None
        return max(seen[-1][0] for seen in self.levels.values()) - since

    def wait(self, holds: Callable[[], object], seconds: float) -> bool:
        """Whether something holds within some seconds."""
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _run(self, level: str, look: Callable[[], bool]) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            ready = look()
            seen = self.levels[level]
            if not seen or seen[-1][1] != ready:
                seen.append((time.monotonic(), ready))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        assert self.wait(lambda: all(seen and seen[-1][1] for seen in self.levels.values()), 30), self.levels
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)


class Stream:
    """An answer of 400 tokens, read by a thread; made when the first piece has come, unless that is not waited for.

    Attributes:
        ended: When it ended, `time.monotonic`; None while it has not.
        outcome: "done", or "error" where it said what was wrong; else what was seen.
    """

    def __init__(self, run: Callable[[Callable[[], None]], str], *, begun: bool = True) -> None:
        self.ended: float | None = None
        self.outcome = ""
        self._begun = threading.Event()
        self._body = run
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert not begun or self._begun.wait(30), "the stream did not begin"

    def join(self, seconds: float) -> Stream:
        """Wait for its end."""
        self._thread.join(seconds)
        return self

    def _run(self) -> None:
        try:
            self.outcome = self._body(self._begun.set)
        finally:
            self.ended = time.monotonic()
            self._begun.set()


def sse_stream(served: Served, *, begun: bool = True) -> Stream:
    """A stream through the gateway."""

    def run(begun: Callable[[], None]) -> str:
        host, _, port = served.http.partition(":")
        events: list[dict[str, object]] = []
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", CHAT, json.dumps(LONG), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status != 200:
                    return f"status {answer.status}"
                for line in answer:
                    if line == b"data: [DONE]\n":
                        return "done"
                    if line.startswith(b"data: "):
                        events.append(json.loads(line[6:]))
                        if len(events) == 2:
                            begun()
        except (OSError, http.client.HTTPException) as error:
            return f"broken off: {error!r}"
        return "error" if events and "error" in events[-1] else "ended without a word"

    return Stream(run, begun=begun)


def grpc_stream(served: Served) -> Stream:
    """A stream by gRPC."""

    def run(begun: Callable[[], None]) -> str:
        try:
            with NvlmClient(served.grpc, idle_timeout=60) as client:
                stream = client.stream("Tell me about the sea", options=Options(max_tokens=400, min_tokens=400))
                for _ in stream:
                    begun()
                return "done" if stream.answer.num_output_tokens == 400 else "short"
        except NvlmTrtError:
            return "error"

    return Stream(run)


def ends(streams: Sequence[Stream], since: float) -> float:
    """Seconds from a time to the end of the last stream."""
    return max(0.0, max((stream.ended or float("inf")) for stream in streams) - since)


def _http(address: str, path: str) -> Callable[[], bool]:
    host, _, port = address.partition(":")

    def look() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(host, int(port), timeout=1)
            with contextlib.closing(connection):
                connection.request("GET", path)
                return connection.getresponse().status == 200
        return False

    return look


def _grpc(address: str, model: str | None) -> Callable[[], bool]:
    def look() -> bool:
        with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            if model is None:
                return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1).ready)
            return bool(stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=1).ready)
        return False

    return look
