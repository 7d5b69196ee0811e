"""The requests of a benchmark: every subject gets the same ones, and none gets one twice.

An engine may keep what it has computed of a prompt or an image; a request that repeats would measure that cache.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, field_validator

from nvlm_trt.bench.record import Frozen, ScenarioName
from nvlm_trt.client.request import Turn, image_bytes
from nvlm_trt.verify.cases import make_picture

JPEG_QUALITY = 90
DIGITS = 8
"""Of the number in front of a text: the number tells it from the others, and all are of one length."""

MARGIN = 32
"""Pixels by which a made picture is larger than its tiles: a photograph never fits exactly."""

PROMPT = "What is in this picture?"


@dataclass(frozen=True, slots=True)
class Question:
    """One request.

    Attributes:
        text: The user's message; an ``<image>`` in it or in the history is an image's place.
        images: The files of its images.
        history: Earlier questions and answers, oldest first.
        max_tokens: Tokens of the answer, neither more nor fewer; None for what whoever is asked was made with.
    """

    text: str
    images: tuple[bytes, ...] = ()
    history: tuple[Turn, ...] = ()
    max_tokens: int | None = None


class Workload(Frozen):
    """What is asked.

    Attributes:
        prompt: The text of every request.
        images: Image files, of which request number i shows the i-th in turn; empty for pictures that are made.
        text_only: No image at all.
        columns: Columns of tiles of a made picture.
        rows: Rows of tiles of a made picture.
        max_tokens: Tokens of every answer, neither more nor fewer.
        concurrencies: Requests under way, one after the other.
        requests: Requests of each concurrency and round at least; rounded up to a multiple of the concurrency.
        warmup: Requests before that.
        scenarios: What is measured (nvlm_trt/bench/scenarios).
        repeats: Requests of each case of a scenario and round.
    """

    prompt: Annotated[str, Field(min_length=1)] = PROMPT
    images: tuple[Path, ...] = ()
    text_only: bool = False
    columns: Annotated[int, Field(ge=1, le=12)] = 2
    rows: Annotated[int, Field(ge=1, le=12)] = 1
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 32
    concurrencies: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1)] = (1, 2, 4, 8)
    requests: Annotated[int, Field(ge=1, le=1000)] = 8
    warmup: Annotated[int, Field(ge=1, le=100)] = 2
    scenarios: Annotated[tuple[ScenarioName, ...], Field(min_length=1)] = ("load",)
    repeats: Annotated[int, Field(ge=1, le=100)] = 2

    @field_validator("concurrencies")
    @classmethod
    def _ascending(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(levels)))

    @property
    def levels(self) -> tuple[int, ...]:
        """Concurrencies that are measured: none where the scenario "load" is not asked for."""
        return self.concurrencies if "load" in self.scenarios else ()

    def count(self, concurrency: int) -> int:
        """Requests of a round at that concurrency: whole turns, so that the end is as busy as the beginning."""
        return -(-self.requests // concurrency) * concurrency

    def per_round(self) -> int:
        """Requests of a round, warm-up included."""
        return self.warmup + sum(map(self.count, self.levels))

    def question(self, number: int, tile_size: int) -> Question:
        """Request number `number`, counted over all rounds.

        Args:
            number: From 0 on, over all rounds; from -1 downwards for tools of others.
            tile_size: Side of a tile of the model, in pixels.

        Raises:
            ImageRejected: an image of the user's cannot be read.
        """
        if self.text_only:
            return Question(f"{number:0{DIGITS}}: {self.prompt}", ())
        if self.images:
            return Question(self.prompt, (image_bytes(self.images[number % len(self.images)]),))
        width, height = (side * tile_size + MARGIN for side in (self.columns, self.rows))
        return Question(self.prompt, (shifted_picture(width, height, number),))


def shifted_picture(width: int, height: int, number: int, seed: int = 0) -> bytes:
    """The JPEG file of a picture moved by `number` pixels: cheap, and each differs from all others everywhere.

    Args:
        width: In pixels.
        height: In pixels.
        number: Below width x height, or it begins anew.
        seed: Of the picture that is moved.
    """
    pixels = np.roll(_pixels(width, height, seed), (number // width, number % width), axis=(0, 1))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


@cache
def _pixels(width: int, height: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]."""
    return np.asarray(make_picture(width, height, seed=seed))
