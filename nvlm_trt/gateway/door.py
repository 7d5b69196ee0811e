"""What every request passes before a route sees it: the key, a place, its body within limits.

And what ends it early: a client that hangs up cancels everything that is done for it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.body import ClientGoneError, read_body
from nvlm_trt.gateway.errors import ApiError, api_error
from nvlm_trt.gateway.exchange import Exchange
from nvlm_trt.gateway.keys import KeyRing
from nvlm_trt.gateway.log import log_access
from nvlm_trt.gateway.metrics import Metrics, route_of
from nvlm_trt.gateway.origin import check_site
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.gateway.tracing import begin_trace, end_trace
from nvlm_trt.tracing import CANCELLED, Tracer

OPEN: Final = frozenset(
    {"/", "/metrics", "/openapi.json", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
)
"""Paths that ask for no key: they tell nothing about anybody's requests, and probes have no keys."""

PAGE: Final = "/page/"
"""Begins the paths of the page's files, which ask for none either: the page asks its user for one."""

OTHER_BODY: Final = 4096
"""Bytes of a body at most where the server is not asked for work. None of what is there reads a large one, and neither
who shows no key nor who keeps to no limit of its key gets the room for bodies that others need."""

WORK: Final = re.compile(r"/v1/((chat/)?completions|tiles)|/v2/models/.*")
"""Paths that make the server work when they are posted to."""

TILES: Final = "/v1/tiles"
"""The one of them that asks the decoder nothing."""

JSON: Final = (b"content-type", b"application/json")


class Door:
    """The outermost part of the application.

    Args:
        app: The routes.
        limits: What a request may take.
        keys: Who may come in.
        admission: How many at once.
        metrics: Told what happens.
        tracer: Makes spans; None where nobody asked for traces.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: KeyRing,
        admission: Admission,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._admission = admission
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._limits, self._admission.buffer)
        route = route_of(exchange.path)
        if self._tracer is not None and exchange.method == "POST" and WORK.fullmatch(exchange.path):
            begin_trace(self._tracer, exchange, route)
        try:
            async with exchange.stack:
                await self._let_in(exchange)
        except Exception as error:
            if exchange.given_up or isinstance(error, ClientGoneError):  # some Starlettes wrap it in a group
                exchange.error = CANCELLED
            else:
                await self._refuse(exchange, error)
        except asyncio.CancelledError:
            exchange.error = CANCELLED
            raise
        finally:
            self._metrics.answered(exchange, route)
            end_trace(exchange)
            log_access(exchange, route)

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        refusal = api_error(error)
        exchange.error = refusal.word
        if exchange.status is None:
            await exchange.refuse(refusal)

    async def _let_in(self, exchange: Exchange) -> None:
        is_open = exchange.path in OPEN or exchange.path.startswith(PAGE)
        if not is_open:
            client = self._keys.check(exchange.headers.get(b"authorization"))
            exchange.key = client.name
            if exchange.key is None:
                check_site(exchange.headers)
            if exchange.method == "POST" and WORK.fullmatch(exchange.path):
                exchange.places.enter_context(client.request())
                place = self._admission.place(joins=exchange.path != TILES)
                exchange.place = exchange.places.enter_context(place)
        limit = self._limits.max_body
        exchange.has_body(await self._read(exchange, min(limit, OTHER_BODY) if exchange.place is None else limit))
        if exchange.place is not None:
            exchange.place.has_arrived = True
        await self._run(exchange)

    async def _read(self, exchange: Exchange, limit: int) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_time):
                return await read_body(exchange.receive, exchange.headers, limit, exchange.hold)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="request_timeout") from None

    async def _run(self, exchange: Exchange) -> None:
        """Let the routes answer; a client that hangs up cancels them."""
        scope = exchange.scope
        if exchange.method == "HEAD" and not exchange.path.startswith("/v2"):
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        if exchange.path.startswith("/v1/"):  # curl calls every body a form, unless it is told otherwise
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"content-type"] + [JSON]}
        work = asyncio.create_task(_routes(self._app, scope, exchange))
        gone = asyncio.create_task(_hung_up(exchange.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not exchange.is_answered:
                raise ClientGoneError
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _routes(app: ASGIApp, scope: Scope, exchange: Exchange) -> None:
    waiting = asyncio.Event()
    first: list[Message] = [{"type": "http.request", "body": exchange.body, "more_body": False}]

    async def receive() -> Message:
        if not first:
            await waiting.wait()  # whether the client is there is looked after outside
        return first.pop()

    await app(scope, receive, exchange.send)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
