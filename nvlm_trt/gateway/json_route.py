"""A route that reads JSON by pydantic's parser: several times as fast as Python's on bodies that are mostly images.

A parser holds the event loop, and with it the refusals of a busy server, for as long as it reads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from nvlm_trt.gateway.body import SMALL_BODY, check_members


class JsonRoute(APIRoute):
    """FastAPI's route; what is no JSON is told as FastAPI tells it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a request that reads its body in this way."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            asked = _JsonRequest(request.scope, request.receive)
            body = await asked.body()
            if len(body) > SMALL_BODY:
                await asyncio.to_thread(check_members, body)
            return await handle(asked)

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body)  # NaN too, which the fields refuse by their names
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
