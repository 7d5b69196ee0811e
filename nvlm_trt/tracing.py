"""Spans of requests, in OpenTelemetry's form: one trace for a request, made by all processes that it passes.

Each process makes the spans of what it did itself and sends them itself; only the W3C `traceparent` travels with the
request. The alternative, models that return their times to the gateway, needs response parameters, which Python models
have from Triton 25.02 on.

OpenTelemetry's own environment variables decide: without an OTLP endpoint nothing is loaded and nothing is made. No
span holds a text, an image or a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from nvlm_trt.errors import EngineError, RequestError, installing

if TYPE_CHECKING:
    from opentelemetry import trace as api

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENDPOINTS: Final = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""W3C Trace Context, level 1, section 3.2; a later version may say more behind it."""

CANCELLED: Final = "cancelled"
"""The error of a stage that its client gave up."""

DEFAULTS: Final = {"OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_BSP_SCHEDULE_DELAY": "1000"}
"""Where the environment says nothing: the seconds that a collector may take, for which a server that stops may wait,
and the milliseconds after which spans are sent: a model process that is ended at once takes its last ones with it."""

Facts = Mapping[str, str | int | float | bool]


class Span:
    """A stage of a request. This one is of a request that nobody traces: it does nothing.

    Times are those of `time.monotonic()`.

    Attributes:
        traceparent: What children in other processes are told; None where there are none to make.
    """

    traceparent: str | None = None

    def child(self, name: str, *, began: float | None = None) -> Span:
        """A stage within this one.

        Args:
            name: Its name.
            began: When it began; None for now.
        """
        return self

    def note(self, facts: Facts) -> None:
        """Add attributes."""

    def end(self, error: str | None = None, *, at: float | None = None) -> None:
        """End the stage.

        Args:
            error: Why it failed, in a word; `CANCELLED` where its client gave it up.
            at: When it ended; None for now.
        """


UNTRACED: Final = Span()


@contextlib.contextmanager
def stage(span: Span, name: str) -> Iterator[Span]:
    """A stage within a span, for a block of code; what the block raises is its error."""
    within = span.child(name)
    try:
        yield within
    except BaseException as error:
        within.end(word_of(error))
        raise
    within.end()


def word_of(error: BaseException) -> str:
    """A failure in a word."""
    given_up = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return CANCELLED if given_up else type(error).__name__


class _Recorded(Span):
    """A stage that is sent when it ends; without a span of its own it stands for one in another process."""

    def __init__(self, tracer: api.Tracer, context: api.SpanContext, span: api.Span | None = None) -> None:
        self._tracer = tracer
        self._context = context
        self._span = span
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def child(self, name: str, *, began: float | None = None) -> Span:
        return _begin(self._tracer, name, self._context, began)

    def note(self, facts: Facts) -> None:
        if self._span is not None:
            self._span.set_attributes(dict(facts))

    def end(self, error: str | None = None, *, at: float | None = None) -> None:
        if self._span is None:
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.set_attribute("error.type", error)
        self._span.end(_wall(at))


class Tracer:
    """Makes spans of one process and sends them from a thread of its own.

    Args:
        process: The name of the process, which its spans say.
    """

    def __init__(self, process: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise EngineError(
                "traces were asked for, and OpenTelemetry is not installed",
                seen=f"no module {error.name}",
                fix=f"{installing('trace')}, or leave the OTLP endpoint out",
            ) from None
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "nvlm-trt"}
        resource = Resource.create({**named, "nvlm.process": process, "process.pid": os.getpid()})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("nvlm_trt")

    def begin(self, name: str, traceparent: object = None, *, began: float | None = None) -> Span:
        """A stage: of the trace that a `traceparent` names, of a new one where it names none.

        Args:
            name: Its name.
            traceparent: What came with the request, well formed or not.
            began: When it began; None for now.
        """
        return _begin(self._tracer, name, _context_of(traceparent), began)

    def remote(self, traceparent: object) -> Span:
        """A stage of another process, to make children of; none where a `traceparent` names none."""
        context = _context_of(traceparent)
        return UNTRACED if context is None or not context.trace_flags.sampled else _Recorded(self._tracer, context)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def check_endpoint(url: str) -> str:
    """The URL of a collector.

    Raises:
        RequestError: it is none.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError("the OTLP endpoint is no URL", seen=url[:64], expected="http://host:4318")
    return url


def tracer_from_environment(process: str, environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer that the environment asks for; None where it asks for none.

    Raises:
        EngineError: OpenTelemetry is not installed.
    """
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    off = off or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return None if off or not any(environment.get(name) for name in ENDPOINTS) else Tracer(process)


def _begin(tracer: api.Tracer, name: str, parent: api.SpanContext | None, began: float | None) -> Span:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
    span = tracer.start_span(name, context, start_time=_wall(began))
    return _Recorded(tracer, span.get_span_context(), span) if span.is_recording() else UNTRACED


def _context_of(traceparent: object) -> api.SpanContext | None:
    from opentelemetry.trace import SpanContext, TraceFlags

    match = PARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16)))


def _wall(at: float | None) -> int | None:
    """Nanoseconds of the wall clock for a time of the monotonic one; None stays now."""
    return None if at is None else time.time_ns() - int((time.monotonic() - at) * 1e9)
