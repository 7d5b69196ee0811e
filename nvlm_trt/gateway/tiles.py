"""What the model will see of a request, without asking it: ``POST /v1/tiles`` and ``GET /v1/limits``. Not OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from nvlm_trt.gateway.conversation import conversation_of
from nvlm_trt.gateway.exchange import exchange_of
from nvlm_trt.gateway.images import Images
from nvlm_trt.gateway.json_route import JsonRoute
from nvlm_trt.gateway.model import Ask
from nvlm_trt.gateway.openai import ERRORS, require_model
from nvlm_trt.gateway.plan import ImagePlan, Planner, Plans
from nvlm_trt.gateway.schema import ChatRequest
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.model.image import FORMATS


class Tile(BaseModel):
    """A tile of an image, as the model reads it."""

    tag: str = Field(description="The text in front of its visual tokens.")
    box: tuple[float, float, float, float] = Field(
        description="The part of the image that it shows: left, top, right, bottom in its upright pixels."
    )
    tokens: tuple[int, int] = Field(
        description="Its visual tokens in the prompt: the first, and the one after the last."
    )


class TiledImage(BaseModel):
    """An image of the conversation; its thumbnail, if it has one, is its last tile."""

    width: int
    height: int
    columns: int
    rows: int
    thumbnail: bool
    tiles: list[Tile]

    @classmethod
    def of(cls, plan: ImagePlan) -> TiledImage:
        """An image as it is planned."""
        grid = plan.grid
        parts = zip(grid.tags, grid.boxes(*plan.size), plan.ranges, strict=True)
        return cls(
            width=plan.size[0],
            height=plan.size[1],
            columns=grid.columns,
            rows=grid.rows,
            thumbnail=grid.thumbnail,
            tiles=[Tile(tag=tag, box=box, tokens=tokens) for tag, box, tokens in parts],
        )


class Tiles(BaseModel):
    """A request as the model will see it."""

    object: Literal["tiles"] = "tiles"
    model: str
    prompt_tokens: int
    answer_tokens: int = Field(description="Tokens of the answer at most.")
    max_context_tokens: int = Field(description="Prompt and answer together at most.")
    tokens_per_tile: int
    images: list[TiledImage]


class LimitsAnswer(BaseModel):
    """What one request may hold. Sizes in bytes and pixels, lengths in tokens."""

    object: Literal["limits"] = "limits"
    model: str
    image_formats: list[str]
    max_body_bytes: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_image_side: int
    min_image_side: int
    max_tiles: int = Field(description="Of an image, the thumbnail not counted.")
    tile_size: int = Field(description="Side of a tile in pixels.")
    tokens_per_tile: int
    max_prompt_tokens: int
    max_answer_tokens: int
    max_context_tokens: int
    default_answer_tokens: int
    exif_orientation: bool = Field(description="Whether images are turned upright unless a request says otherwise.")


def tile_routes(plans: Plans, images: Images, limits: Limits, names: Sequence[str]) -> APIRouter:
    """The routes.

    Args:
        plans: Plans requests.
        images: Reads image URLs.
        limits: What a request may take.
        names: How clients may call the model; the first is its own.
    """
    router = APIRouter(prefix="/v1", responses=ERRORS, route_class=JsonRoute)

    @router.post("/tiles", response_model=Tiles)
    async def tiles(asked: ChatRequest, request: Request) -> Tiles:
        require_model(asked.model, names)
        said = conversation_of(asked.messages)
        exchange = exchange_of(request.scope)
        async with asyncio.timeout_at(exchange.deadline):
            files = await images.read(said.images, exchange.hold)
            ask = Ask(said.question, asked.options(), said.history, said.system, files)
            return await plans.ask(lambda planner: _planned(planner, ask, asked.model))

    @router.get("/limits", response_model=LimitsAnswer)
    async def show_limits() -> LimitsAnswer:
        spec = await plans.ask(lambda planner: planner.spec)
        return LimitsAnswer(
            model=names[0],
            image_formats=list(FORMATS),
            max_body_bytes=limits.max_body,
            max_images=min(limits.max_images, spec.max_images),
            max_image_bytes=min(limits.max_image, spec.max_image_bytes),
            max_image_pixels=spec.max_image_pixels,
            max_image_side=spec.max_image_side,
            min_image_side=spec.min_image_side,
            max_tiles=spec.max_tiles,
            tile_size=spec.tile_size,
            tokens_per_tile=spec.tokens_per_tile,
            max_prompt_tokens=spec.max_input_len,
            max_answer_tokens=spec.max_output_len,
            max_context_tokens=spec.max_seq_len,
            default_answer_tokens=spec.default_max_tokens,
            exif_orientation=spec.exif_orientation,
        )

    return router


def _planned(planner: Planner, ask: Ask, name: str) -> Tiles:
    plan = ask.plan(planner)
    return Tiles(
        model=name,
        prompt_tokens=plan.prompt_tokens,
        answer_tokens=plan.answer_tokens,
        max_context_tokens=planner.spec.max_seq_len,
        tokens_per_tile=planner.spec.tokens_per_tile,
        images=[TiledImage.of(one) for one in plan.images],
    )
