"""Whether the server lives, is ready, and really answers; and its figures."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import ClientError, ClientSession, ClientTimeout
from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST

from nvlm_trt.errors import NvlmTrtError
from nvlm_trt.gateway.metrics import Metrics
from nvlm_trt.gateway.model import Model

PROBE_SECONDS: Final = 10.0
PROBE_KEPT_SECONDS: Final = 5.0
"""For how long a probe's result stands, so that many who ask cost one request."""

SCRAPE_SECONDS: Final = 2.0
AWAY: Final[dict[int | str, dict[str, Any]]] = {503: {"description": "The server does not answer now."}}

log = logging.getLogger(__name__)


class Probe:
    """Asks the model about a small picture, one probe at a time.

    Args:
        model: The model.
        told: Told whether it answered.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        model: Callable[[], Model],
        told: Callable[[bool], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "grey").save(file, "PNG")
        self._image = file.getvalue()
        self._model = model
        self._told = told
        self._now = now
        self._lock = asyncio.Lock()
        self._last: tuple[float, bool] | None = None

    async def works(self) -> bool:
        """Whether the model answers."""
        async with self._lock:
            if self._last is None or self._now() - self._last[0] > PROBE_KEPT_SECONDS:
                works = await self._ask()
                self._last = (self._now(), works)  # after the answer, which may have taken longer than it stands
                self._told(works)
            return self._last[1]

    async def _ask(self) -> bool:
        try:
            await self._model().probe(self._image, PROBE_SECONDS)
        except (NvlmTrtError, TimeoutError) as error:
            log.warning("the deep probe failed: %s", error)
            return False
        return True


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of the server without asking it.

    Attributes:
        is_ready: Whether it takes requests now.
        state: What it is doing, in a word.
        restarts: How often it was replaced, by reason.
    """

    is_ready: Callable[[], bool]
    state: Callable[[], str]
    restarts: Callable[[], Mapping[str, int]]

    def answer(self, state: str | None) -> Response:
        """200 with a state; 503 with what the server is doing, and how often it was replaced and why, for None."""
        if state is not None:
            return JSONResponse({"status": state})
        restarts = {reason: count for reason, count in self.restarts().items() if count}
        body = {"status": self.state() or "unavailable", "restarts": restarts}
        return JSONResponse(body, 503, headers={"Retry-After": "1"})


def health_routes(
    health: Health,
    probe: Probe,
    metrics: Metrics,
    session: Callable[[], ClientSession],
    metrics_address: str,
) -> APIRouter:
    """The routes that probes and Prometheus ask.

    Args:
        health: What is known of the server.
        probe: For ``/health/deep``.
        metrics: The gateway's own.
        session: Connections to tritonserver.
        metrics_address: ``host:port`` of its metrics.
    """
    router = APIRouter()

    @router.get("/health/live")
    @router.get("/v2/health/live", include_in_schema=False)
    async def live() -> Response:
        """Answer while this process does: a server that is being replaced needs no other help."""
        return health.answer("live")

    @router.get("/health/ready", responses=AWAY)
    async def ready() -> Response:
        return health.answer("ready" if health.is_ready() else None)

    @router.get("/health/deep", responses=AWAY)
    async def deep() -> Response:
        return health.answer("answers" if health.is_ready() and await probe.works() else None)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        theirs = b""
        try:
            async with session().get(
                f"http://{metrics_address}/metrics", timeout=ClientTimeout(total=SCRAPE_SECONDS)
            ) as answer:
                theirs = await answer.read() if answer.status == 200 else b""
        except (ClientError, TimeoutError):
            log.info("tritonserver gives no metrics now")
        return Response(metrics.text() + theirs, media_type=CONTENT_TYPE_LATEST)

    return router
