"""What scenarios are made of: requests of a wanted size that nobody had before, asked alone or together."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, get_args

from nvlm_trt.bench.load import Asker
from nvlm_trt.bench.record import CaseRecord, Frozen, RequestRecord, ScenarioName
from nvlm_trt.bench.workload import MARGIN, Question, shifted_picture
from nvlm_trt.model.config import MAX_TILES
from nvlm_trt.model.tiling import plan_grid

SEED: Final = 1
"""Of pictures: others than those of the load."""

APART: Final = 4096
"""Numbers of pictures that a round takes at most."""

NAMES: Final[tuple[ScenarioName, ...]] = get_args(ScenarioName)
"""Of all scenarios."""

LABEL: Final = 8
"""Digits that tell one short question from another."""

PROBE: Final = "0" * LABEL
"""Asked for the length of its prompt."""

TAG_TOKENS: Final = 32
"""Of a tile's tag and what stands around it, at most: the longest has 24 characters."""


class LeftOut(Exception):  # noqa: N818 - it is no error: the report gives the reason
    """A scenario, or the rest of it, cannot be measured; the text says why."""


class Bounds(Frozen):
    """What every engine of a benchmark takes, so that all get the same requests.

    Attributes:
        tile_size: Side of a tile in pixels.
        tokens_per_tile: Visual tokens of a tile.
        thumbnail: Whether an image of several tiles has a thumbnail too.
        max_tiles: Tiles of an image at most, its thumbnail not counted.
        prompt_tokens: Tokens of a prompt at most.
        answer_tokens: Tokens of an answer at most.
        total_tokens: Tokens of both at most.
        streams: Requests decoded at a time.
        served: Whether times are those of a client of a server, which gets text and no tokens.
    """

    tile_size: int
    tokens_per_tile: int
    thumbnail: bool
    max_tiles: int
    prompt_tokens: int
    answer_tokens: int
    total_tokens: int
    streams: int
    served: bool = False

    @property
    def grids(self) -> dict[int, tuple[int, int]]:
        """Columns and rows of the smallest picture of each number of tiles, thumbnail included, ascending."""
        found: dict[int, tuple[int, int]] = {}
        for columns in range(1, MAX_TILES + 1):
            for rows in range(1, min(columns, self.max_tiles // columns) + 1):
                width, height = self.picture_size(columns, rows)
                grid = plan_grid(
                    width, height, max_tiles=self.max_tiles, tile_size=self.tile_size, use_thumbnail=self.thumbnail
                )
                if (grid.columns, grid.rows) == (columns, rows):
                    found[grid.num_tiles] = (columns, rows)
        return dict(sorted(found.items()))

    @property
    def most_tiles(self) -> int:
        """Tiles of the largest image, thumbnail included."""
        return max(self.grids)

    def picture_size(self, columns: int, rows: int) -> tuple[int, int]:
        """Width and height of a picture of so many tiles."""
        return columns * self.tile_size + MARGIN, rows * self.tile_size + MARGIN


class Scene:
    """Whom a scenario asks, and what it asks with. Every text and picture is a new one, the same for every subject.

    Args:
        asker: Whom it asks.
        bounds: What can be asked.
        number: Of the round, from 0 on.
        repeats: Requests of each case.

    Attributes:
        left_out: What was not measured, and why.
    """

    def __init__(self, asker: Asker, bounds: Bounds, number: int, repeats: int) -> None:
        self.bounds, self.repeats = bounds, repeats
        self.left_out: list[str] = []
        self._asker = asker
        self._number = number
        self.begin("load")
        self._frame: int | None = None
        self._images: dict[int, int] = {}

    def begin(self, name: ScenarioName) -> None:
        """Let texts and pictures from now on hang on nothing but the round and the scenario."""
        self._name = name
        self._chance = random.Random(f"{self._number} {name}")
        self._pictures = APART * self._number + APART // len(NAMES) * NAMES.index(name)

    def leave_out(self, reason: Exception) -> None:
        """Note why something of the scenario that has begun is not measured."""
        self.left_out.append(f"{self._name}: {reason}")

    def digits(self, count: int = LABEL) -> str:
        """A text of `count` tokens: the pre-tokeniser of Qwen2 takes every digit as one token."""
        return "".join(self._chance.choices("0123456789", k=count))

    def text(self, tokens: int, answer: int) -> Question:
        """A question without an image, of so many prompt tokens in all.

        Raises:
            LeftOut: it does not fit.
        """
        count = tokens - self._frame_tokens()
        if count < LABEL:
            raise LeftOut(f"a prompt of {tokens:,} tokens is shorter than the template")
        self.check_room(tokens, answer)
        return Question(self.digits(count), max_tokens=answer)

    def picture(self, tiles: int) -> bytes:
        """The file of a new picture of so many tiles, thumbnail included."""
        self._pictures += 1
        return self._picture(tiles, self._pictures)

    def about(self, tiles: int, text: str | None = None) -> Question:
        """A question of one token of answer about a new picture of so many tiles; its text is a few digits."""
        return Question(self.digits() if text is None else text, (self.picture(tiles),), max_tokens=1)

    def image_tokens(self, tiles: int) -> int:
        """Tokens of a prompt about an image besides its text: visual ones, tags and template. Asked for once.

        Raises:
            LeftOut: it does not fit, or whoever is asked cuts it into other tiles.
            UserError: it does not fit with its tags, says whoever is asked.
        """
        if tiles not in self._images:
            self.check_room(tiles * self.bounds.tokens_per_tile, 1)
            picture = self._picture(tiles, APART * self._number + tiles)  # the load has no pictures here
            found = self.ask(Question(PROBE, (picture,), max_tokens=1)).prompt_tokens - LABEL
            least, seen = tiles * self.bounds.tokens_per_tile, found - self._frame_tokens()
            most = least + tiles * TAG_TOKENS
            if not least <= seen <= most:
                raise LeftOut(
                    f"a picture meant to be {tiles} tiles of {self.bounds.tokens_per_tile} tokens took {seen:,} tokens "
                    f"where {least:,} to {most:,} were expected; give the engine directory of "
                    "the model, which knows its tiles"
                )
            self._images[tiles] = found
        return self._images[tiles]

    def check_room(self, tokens: int, answer: int) -> None:
        """Look whether prompt and answer fit.

        Raises:
            LeftOut: they do not.
        """
        room = min(self.bounds.prompt_tokens, self.bounds.total_tokens - answer)
        if tokens > room:
            raise LeftOut(f"a prompt of {tokens:,} tokens does not fit; at most {room:,} do")
        if answer > self.bounds.answer_tokens:
            raise LeftOut(f"an answer of {answer:,} tokens does not fit; at most {self.bounds.answer_tokens:,} do")

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""
        return self._asker.ask(question)

    def alone(
        self, scenario: ScenarioName, case: str, questions: Sequence[Question], size: int | None = None
    ) -> CaseRecord:
        """Ask one after the other."""
        begun, started, records = time.perf_counter(), [], []
        for question in questions:
            started.append(time.perf_counter() - begun)
            records.append(self.ask(question))
        wall = time.perf_counter() - begun
        return CaseRecord(
            scenario=scenario, case=case, size=size, wall_s=wall, started_s=tuple(started), requests=tuple(records)
        )

    def together(
        self,
        scenario: ScenarioName,
        case: str,
        questions: Sequence[Question],
        size: int | None = None,
        *,
        last_after: float = 0.0,
    ) -> CaseRecord:
        """Ask all at once, the last one `last_after` seconds later.

        Raises:
            NvlmTrtError: whatever the first request that failed raised.
        """
        start = threading.Barrier(len(questions))
        begun = time.perf_counter()

        def call(question: Question, delay: float) -> tuple[float, RequestRecord]:
            start.wait()
            time.sleep(delay)
            started = time.perf_counter() - begun
            return started, self.ask(question)

        delays = [0.0] * (len(questions) - 1) + [last_after]
        with ThreadPoolExecutor(len(questions), thread_name_prefix="bench") as callers:
            done = list(callers.map(call, questions, delays))
        wall = time.perf_counter() - begun - min(started for started, _ in done)
        started_s, records = zip(*done, strict=True)
        return CaseRecord(scenario=scenario, case=case, size=size, wall_s=wall, started_s=started_s, requests=records)

    def _frame_tokens(self) -> int:
        """Tokens of the template and the system message, asked for once."""
        if self._frame is None:
            self._frame = self.ask(Question(PROBE, max_tokens=1)).prompt_tokens - LABEL
        return self._frame

    def _picture(self, tiles: int, number: int) -> bytes:
        return shifted_picture(*self.bounds.picture_size(*self.bounds.grids[tiles]), number, SEED)


class Scenario(Protocol):
    """Something that is measured."""

    def __call__(self, scene: Scene) -> Iterator[CaseRecord]:
        """Its cases, as they are measured.

        Raises:
            LeftOut: it cannot be measured, or no more of it.
        """
