"""The gateway's own figures, in Prometheus' form, beside tritonserver's."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from nvlm_trt import __version__
from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.processes import ProcessCollector
from nvlm_trt.tracing import CANCELLED

ROUTES: Final = (
    (re.compile(r"/v1/chat/completions"), "chat"),
    (re.compile(r"/v1/completions"), "completions"),
    (re.compile(r"/v1/tiles"), "tiles"),
    (re.compile(r"/(page/.*)?"), "page"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/generate_stream"), "generate_stream"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/generate"), "generate"),
    (re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer"), "infer"),
    (re.compile(r"/(v2/)?health/.*|/v2/models/[^/]+(/versions/[^/]+)?/ready|/metrics"), "health"),
)
"""What a path counts as; a client chooses paths, so that they are no labels."""

OTHER: Final = "other"
"""What every other path counts as."""

OUR_STATUSES: Final = ("500", "504")
OUR_REFUSALS: Final = ("overloaded", "unavailable", "internal_error", "deadline_exceeded")
"""Reasons that are no fault of the client."""

STREAM_ERROR: Final = "stream_error"
"""The reason of a stream of KServe's that told an error itself."""

FIRST_TOKEN: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
WHOLE: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


def route_of(path: str) -> str:
    """What a path counts as."""
    return next((name for pattern, name in ROUTES if pattern.fullmatch(path)), OTHER)


class Metrics:
    """Counts what happens at the gateway.

    Args:
        admission: Whose places are shown.
        is_ready: Whether the server answers now.
        restarts: How often it was replaced, by reason.
        processes: Ids of its processes, by name.
        engine: Name of what is served.
    """

    def __init__(
        self,
        admission: Admission,
        is_ready: Callable[[], bool],
        restarts: Callable[[], Mapping[str, int]],
        processes: Callable[[], Mapping[str, int]],
        engine: str,
    ) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter("nvlm_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._refused = Counter("nvlm_refused", "Refused or failed requests, by reason.", ["reason"], registry=registry)
        self._cancelled = Counter("nvlm_cancelled", "Requests given up by clients.", ["route"], registry=registry)
        self._broken = Counter("nvlm_broken_streams", "Streams that failed, by reason.", ["reason"], registry=registry)
        self._probes = Counter("nvlm_deep_probes", "Deep probes.", ["result"], registry=registry)
        # What alerts look at is there from the beginning: Prometheus sees no growth in a first sample.
        for counter, values in (
            (self._refused, OUR_REFUSALS),
            (self._broken, (*OUR_REFUSALS, STREAM_ERROR)),
            (self._probes, ("answered", "failed")),
        ):
            for value in values:
                counter.labels(value)
        for route, status in itertools.product((*(name for _, name in ROUTES), OTHER), OUR_STATUSES):
            self._requests.labels(route, status)
        self._waits = Histogram(
            "nvlm_queue_seconds", "Requests' wait for the server.", buckets=FIRST_TOKEN, registry=registry
        )
        self._seconds = Histogram(
            "nvlm_request_seconds", "From a request's headers to its end.", ["route"], buckets=WHOLE, registry=registry
        )
        self._first = Histogram(
            "nvlm_first_token_seconds", "To the first text of a stream.", buckets=FIRST_TOKEN, registry=registry
        )
        self._between = Histogram(
            "nvlm_inter_token_seconds", "Between texts of a stream.", buckets=BETWEEN_TOKENS, registry=registry
        )
        self._tokens = Counter("nvlm_tokens", "Tokens of prompts and answers.", ["kind"], registry=registry)
        self._images = Counter("nvlm_images", "Images that came.", ["source"], registry=registry)
        for name, text, read in (
            ("nvlm_requests_working", "Requests that the server works on.", lambda: admission.working),
            ("nvlm_requests_waiting", "Requests that wait.", lambda: admission.present - admission.working),
            ("nvlm_planned_tokens", "Tokens of the prompts and answers of all requests.", lambda: admission.planned),
            ("nvlm_planned_tokens_rate", "Such tokens worked off in a second.", lambda: admission.rate),
            ("nvlm_expected_wait_seconds", "That the next request would wait for.", lambda: admission.wait),
            ("nvlm_buffered_bytes", "Bytes of bodies and fetched images that are held.", lambda: admission.buffered),
            ("nvlm_server_ready", "Whether the server answers.", is_ready),
        ):
            Gauge(name, text, registry=registry).set_function(read)
        began = Gauge("nvlm_start_time_seconds", "When serve began, in seconds since 1970.", registry=registry)
        began.set_to_current_time()
        Info("nvlm_build", "What is served, by which release.", registry=registry).info(
            {"version": __version__, "engine": engine}
        )
        registry.register(_Restarts(restarts))
        registry.register(ProcessCollector(processes))

    def answered(self, exchange: Exchange, route: str) -> None:
        """Note the end of a request of a route, and why it was not answered where it was not."""
        error = exchange.error
        self._seconds.labels(route).observe(time.monotonic() - exchange.began)
        if exchange.status is not None:
            self._requests.labels(route, str(exchange.status)).inc()
        if error == CANCELLED:
            self._cancelled.labels(route).inc()
        elif error is not None:
            (self._broken if exchange.status == 200 else self._refused).labels(error).inc()

    def waited(self, seconds: float) -> None:
        """Note for how long a request waited for the server."""
        self._waits.observe(seconds)

    def probed(self, answered: bool) -> None:
        """Note a deep probe."""
        self._probes.labels("answered" if answered else "failed").inc()

    def texts(self, exchange: Exchange) -> Callable[[], None]:
        """What to call whenever a text of a stream comes: notes the time to the first, then those between."""
        last: float | None = None

        def came() -> None:
            nonlocal last
            now = time.monotonic()
            if last is None:
                exchange.first_text = now
                exchange.note(first_text_seconds=round(now - exchange.began, 6))
                self._first.observe(now - exchange.began)
            else:
                self._between.observe(now - last)
            last = now

        return came

    def answer(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Note the size of an answer."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("answer").inc(answer_tokens)

    def image(self, source: str) -> None:
        """Note an image: it came "inline" or was "fetched"."""
        self._images.labels(source).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self._registry)


class _Restarts(Collector):
    """How often the server was replaced; the supervisor counts."""

    def __init__(self, restarts: Callable[[], Mapping[str, int]]) -> None:
        self._restarts = restarts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample for each reason."""
        family = CounterMetricFamily(
            "nvlm_server_restarts", "Replacements of the server, by reason.", labels=["reason"]
        )
        for reason, count in self._restarts().items():
            family.add_metric([reason], count)
        yield family
