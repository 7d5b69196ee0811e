"""The access line: one event of the log for each request, without a word of what was asked or answered."""

from __future__ import annotations

import logging
import time
from typing import Final

from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.logs import fields

QUIET: Final = frozenset({"health", "page"})
"""Routes that are asked often and tell little: their lines have level debug. What becomes of the server, which probes
see, is an event of its own."""

log = logging.getLogger(__name__)


def log_access(exchange: Exchange, route: str) -> None:
    """Write the line of a request that has ended."""
    level = logging.DEBUG if route in QUIET else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts = fields(
        request_id=exchange.request_id,
        key=exchange.key,
        method=exchange.method[:16],
        route=route,
        status=exchange.status,
        seconds=round(time.monotonic() - exchange.began, 6),
        body_bytes=len(exchange.body),
        **exchange.facts,
        error=exchange.error,
    )
    log.log(level, "request", extra=facts)
