"""What a request will take, before anything is done for it: its images' grids and its tokens, from headers and text.

Exact: the same rules as the server's own preparation (`nvlm_trt.model`), without decoding a pixel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import numpy as np
from pydantic_core import from_json

from nvlm_trt.decoder.request import check_length
from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.errors import ImageRejected, RequestError
from nvlm_trt.model.image import read_size
from nvlm_trt.model.prompt import Turn, build_prompt, check_prompt_length
from nvlm_trt.model.tiling import TileGrid, plan_grid
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.serving.requests import parse_question
from nvlm_trt.serving.spec import ServingSpec

Value = TypeVar("Value")

THREADS: Final = 2
"""That plan: a text of megabytes takes seconds, and should not hold up the others."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image of a request.

    Attributes:
        size: Width and height in pixels, turned upright where that is asked for.
        grid: How it is cut.
        ranges: First and behind-last token of each tile in the prompt, thumbnail last.
    """

    size: tuple[int, int]
    grid: TileGrid
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request will take.

    Attributes:
        images: Its images, in the order of their places.
        prompt_tokens: Tokens of its prompt, visual ones included.
        answer_tokens: Tokens of its answer at most.
    """

    images: tuple[ImagePlan, ...]
    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.prompt_tokens + self.answer_tokens


class Planner:
    """Plans requests of one engine; may be called from any thread.

    Args:
        spec: The engine's shapes and limits.
        tokenizer: Its tokenizer.
    """

    def __init__(self, spec: ServingSpec, tokenizer: NvlmTokenizer) -> None:
        self.spec = spec
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, engine_dir: Path, recipe: BuildRecipe) -> Self:
        """The planner of an engine directory.

        Raises:
            CheckpointError: its configuration or its tokenizer cannot be read.
        """
        return cls(ServingSpec.of(engine_dir, recipe), NvlmTokenizer.load(engine_dir / TOKENIZER))

    def plan(
        self,
        question: str,
        *,
        images: Sequence[bytes] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        max_tiles: int | None = None,
        exif_orientation: bool | None = None,
        max_tokens: int | None = None,
    ) -> Plan:
        """Plan a request.

        Args:
            question: The user's message.
            images: Image files; only their headers are read.
            history: Earlier questions and answers.
            system: The system message; None for the model's own.
            max_tiles: Tiles an image is cut into at most; None for the recipe's.
            exif_orientation: Whether images are turned upright; None for the recipe's.
            max_tokens: Tokens of the answer at most; None for the server's own number, or what there is room for.

        Raises:
            ImageRejected: an image's header is refused, by its number.
            PromptError: the prompt is longer than the engine, or has more images than places for them.
            RequestError: another value is out of range.
        """
        spec = self.spec
        max_tiles = spec.max_tiles if max_tiles is None else max_tiles
        if not 1 <= max_tiles <= spec.max_tiles:
            raise RequestError("max_tiles is out of range", seen=max_tiles, expected=f"1 to {spec.max_tiles}")
        upright = spec.exif_orientation if exif_orientation is None else exif_orientation
        sizes = [self._size(file, place, len(images), upright=upright) for place, file in enumerate(images)]
        grids = [
            plan_grid(*size, max_tiles=max_tiles, tile_size=spec.tile_size, use_thumbnail=spec.use_thumbnail)
            for size in sizes
        ]
        counts = [grid.num_tiles for grid in grids]
        # One token stands for each tile here: it splits the text as all tokens of the tile would.
        prompt = build_prompt(
            self.tokenizer, 1, question, tiles=counts, history=history, system=system, limit=spec.max_input_len
        )
        per_tile, tiles = spec.tokens_per_tile, sum(counts)
        tokens = len(prompt.input_ids) + tiles * (per_tile - 1)
        check_prompt_length(tokens, tiles * per_tile, spec.max_input_len)
        starts = [place + number * (per_tile - 1) for number, place in enumerate(prompt.visual_positions)]
        ranges = iter([(start, start + per_tile) for start in starts])
        planned = tuple(
            ImagePlan(size, grid, tuple(next(ranges) for _ in range(grid.num_tiles)))
            for size, grid in zip(sizes, grids, strict=True)
        )
        return Plan(planned, tokens, self._answer_tokens(tokens, max_tokens))

    def _answer_tokens(self, prompt_tokens: int, max_tokens: int | None) -> int:
        spec = self.spec
        if max_tokens is None:
            return min(spec.default_max_tokens, spec.max_seq_len - prompt_tokens)
        spec.check_max_tokens(max_tokens)
        check_length(prompt_tokens, max_tokens, spec.max_seq_len, "engine")
        return max_tokens

    def _size(self, file: bytes, place: int, count: int, *, upright: bool) -> tuple[int, int]:
        try:
            return read_size(file, self.spec.image_limits, exif_orientation=upright)
        except ImageRejected as error:
            raise error.numbered(place, count) from None


def plan_generate(planner: Planner, body: bytes) -> Plan:
    """What a generate call of KServe's API will take.

    Args:
        planner: Plans.
        body: Its JSON, an object of known fields of the right types.

    Raises:
        UserError: as the server would refuse it.
    """
    members = from_json(body)
    fields = {**members, **members.pop("parameters", {})}
    values = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    tensors = {name: np.array(value, object) for name, value in values.items()}
    asked = parse_question(tensors, planner.spec)
    said = asked.conversation
    return planner.plan(
        said.question,
        images=asked.images,
        history=said.history,
        system=said.system,
        max_tiles=asked.max_tiles,
        exif_orientation=asked.exif_orientation,
        max_tokens=asked.sampling.max_tokens if "max_tokens" in fields else None,
    )


class Plans:
    """Plans requests beside the event loop; the planner is loaded there too.

    Args:
        engine_dir: The engine that is served.
        recipe: What it was built with.
    """

    def __init__(self, engine_dir: Path, recipe: BuildRecipe) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="nvlm-plan")
        self._planner = self._pool.submit(Planner.of, engine_dir, recipe)

    async def ask(self, question: Callable[[Planner], Value]) -> Value:
        """What the planner answers; a caller that is cancelled while it waits leaves the queue."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: question(self._planner.result()))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for; for whoever has planned, so that the tokenizer is there."""
        return self._planner.result().tokenizer.token_bytes(index)
