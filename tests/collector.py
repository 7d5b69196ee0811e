"""An OTLP collector: takes spans over HTTP and keeps them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span as it came; ids in hexadecimal, times in seconds."""

    trace: str
    id: str
    parent: str
    name: str
    process: str
    began: float
    ended: float
    facts: dict[str, Any]
    failed: bool
    error: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Collector:
    """A context manager; listens on a free port of loopback."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            process = _facts(group.resource.attributes)["nvlm.process"]
            for scope in group.scope_spans:
                self.spans += [_received(span, process) for span in scope.spans]

    def trace(self, trace: str, names: set[str], seconds: float = 20.0) -> list[Received]:
        """The spans of a trace, once those of these names have come."""
        deadline = time.monotonic() + seconds
        while True:
            came = [span for span in list(self.spans) if span.trace == trace]
            if names <= {span.name for span in came}:
                return came
            assert time.monotonic() < deadline, f"only {sorted(span.name for span in came)} came"
            time.sleep(0.05)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _received(span: Any, process: str) -> Received:
    return Received(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        process,
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _facts(span.attributes),
        span.status.code == 2,
        span.status.message,
    )


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
