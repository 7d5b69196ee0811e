"""Waiting for the server, seen."""

from __future__ import annotations

import time

from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.metrics import Metrics
from nvlm_trt.tracing import stage


async def wait_for_slot(exchange: Exchange, admission: Admission, metrics: Metrics) -> None:
    """Wait until the server may be asked; it may until the request ends.

    Raises:
        ApiError: 503, the wait would be too long, or the server ends.
    """
    if exchange.place is not None:
        admission.line_up(exchange.place)
    began = time.monotonic()
    with stage(exchange.span, "admission"):
        await exchange.stack.enter_async_context(admission.slot())
    seconds = time.monotonic() - began
    metrics.waited(seconds)
    exchange.note(queue_seconds=round(seconds, 6))
