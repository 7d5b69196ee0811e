"""The span of a request at the gateway, of which all others are children."""

from __future__ import annotations

import time

from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.tracing import Tracer


def begin_trace(tracer: Tracer, exchange: Exchange, route: str) -> None:
    """Begin the span of a request, in the trace that its `traceparent` names where it has one."""
    parent = exchange.headers.get(b"traceparent", b"").decode("latin-1")
    exchange.span = tracer.begin(f"{exchange.method} {route}", parent, began=exchange.began)
    exchange.span.note(
        {"nvlm.request_id": exchange.request_id, "http.request.method": exchange.method, "nvlm.route": route}
    )


def end_trace(exchange: Exchange) -> None:
    """End it; where a stream had begun, a stage `stream` shows for how long it ran."""
    now = time.monotonic()
    if exchange.first_text is not None:
        exchange.span.child("stream", began=exchange.first_text).end(exchange.error, at=now)
    status = {} if exchange.status is None else {"http.response.status_code": exchange.status}
    exchange.span.note({**status, **{f"nvlm.{name}": value for name, value in exchange.facts.items()}})
    exchange.span.end(exchange.error, at=now)
