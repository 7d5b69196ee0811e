"""The application: its parts put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import ClientSession, TCPConnector
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from nvlm_trt import __version__
from nvlm_trt.engine_files import RECIPE
from nvlm_trt.errors import NvlmTrtError
from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.door import Door
from nvlm_trt.gateway.errors import ApiError, api_error, unavailable
from nvlm_trt.gateway.exchange import exchange_of
from nvlm_trt.gateway.fetch import Fetcher
from nvlm_trt.gateway.health import Health, Probe, health_routes
from nvlm_trt.gateway.images import Images
from nvlm_trt.gateway.keys import KeyFile, KeyRing
from nvlm_trt.gateway.kserve import PassThrough
from nvlm_trt.gateway.metrics import Metrics
from nvlm_trt.gateway.model import Model
from nvlm_trt.gateway.openai import openai_routes
from nvlm_trt.gateway.plan import Plans
from nvlm_trt.gateway.settings import GatewaySettings, Upstream
from nvlm_trt.gateway.tiles import tile_routes
from nvlm_trt.gateway.web import page_routes
from nvlm_trt.recipe import load_recipe
from nvlm_trt.tracing import tracer_from_environment

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
READY: Final = "/v2/health/ready"
MODEL_READY: Final = "/v2/models/{model}/ready"
VERSION_READY: Final = "/v2/models/{model}/versions/{version}/ready"


@dataclass(frozen=True, slots=True)
class Served:
    """What the gateway stands in front of.

    Attributes:
        upstream: Where tritonserver listens.
        names: How clients may call the model; the first is its own.
        is_ready: Whether the server answers now.
        restarts: How often it was replaced, by reason.
        engine_dir: The engine that is served, whose shapes and tokenizer tell what it will see; None shows nothing.
        processes: Ids of its processes, by name.
        is_ending: Whether the server was asked to stop.
        state: What it is doing, in a word.
    """

    upstream: Upstream
    names: tuple[str, ...]
    is_ready: Callable[[], bool]
    restarts: Callable[[], Mapping[str, int]] = dict
    engine_dir: Path | None = None
    processes: Callable[[], Mapping[str, int]] = dict
    is_ending: Callable[[], bool] = bool
    state: Callable[[], str] = str


class _Connections:
    """Connections to tritonserver; they belong to the event loop, so that they are made when it runs."""

    session: ClientSession
    model: Model


def make_app(served: Served, settings: GatewaySettings, fetcher: Fetcher | None = None) -> ASGIApp:
    """The application that is served.

    Args:
        served: What it stands in front of.
        settings: How it treats its clients.
        fetcher: Fetches images; None for one of the settings' domains.
    """
    limits, upstream = settings.limits, served.upstream
    recipe = served.engine_dir and load_recipe(served.engine_dir / RECIPE)
    plans = Plans(served.engine_dir, recipe) if served.engine_dir and recipe else None
    batch = recipe.max_batch_size if recipe else None
    admission = Admission(limits, batch, is_ready=served.is_ready, is_ending=served.is_ending)
    metrics = Metrics(admission, served.is_ready, served.restarts, served.processes, served.names[0])
    tracer = tracer_from_environment("gateway")
    fetcher = fetcher or Fetcher(settings.image_domains, limits.max_image)
    images = Images(limits, fetcher, metrics.image)
    open_ = _Connections()
    passing = PassThrough(
        lambda: open_.session,
        upstream.http,
        admission,
        metrics,
        plans,
        end=lambda request_id: open_.model.end(request_id),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        open_.model = Model(upstream.grpc, admission, metrics, served.is_ready, plans)
        # How many ask is bounded before; a probe or a scrape does not wait for calls under way.
        async with ClientSession(connector=TCPConnector(limit=0), trust_env=False) as open_.session:
            yield
        await open_.model.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    async def tell(request: Request, error: Exception) -> Response:
        told = api_error(error)
        exchange = exchange_of(request.scope)
        exchange.error = told.word
        return Response(told.body(exchange.path), told.status, headers=told.headers, media_type="application/json")

    app = FastAPI(
        title="nvlm-trt",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys(
            (ApiError, NvlmTrtError, TimeoutError, HTTPException, RequestValidationError, Exception), tell
        ),
    )
    app.include_router(openai_routes(lambda: open_.model, images, served.names))
    if plans is not None:
        shown = Images(limits, fetcher, lambda _: None)  # images that are looked at are not counted as asked about
        app.include_router(tile_routes(plans, shown, limits, served.names))
    app.include_router(page_routes())
    probe = Probe(lambda: open_.model, metrics.probed)
    health = Health(served.is_ready, served.state, served.restarts)
    app.include_router(health_routes(health, probe, metrics, lambda: open_.session, upstream.metrics))

    @app.get(READY, include_in_schema=False)
    @app.get(MODEL_READY, include_in_schema=False)
    @app.get(VERSION_READY, include_in_schema=False)
    async def kserve_ready(request: Request) -> Response:
        if not served.is_ready():
            # An answer, as that of /health/ready: a probe that is told so was not refused.
            told = unavailable("the server is not ready")
            return Response(told.body(READY), told.status, told.headers, media_type="application/json")
        return await passing.handle(request)

    for path in ("/v2", "/v2/{path:path}"):
        app.add_route(path, passing.handle, methods=METHODS, include_in_schema=False)
    file = None if settings.key_file is None else KeyFile(settings.key_file)
    return Door(app, limits, KeyRing(settings.api_keys, limits, file), admission, metrics, tracer)
