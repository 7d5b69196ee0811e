"""Whom scenarios ask where no clock shall run: answers follow from the question, and times from the answer."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from nvlm_trt.bench.record import CaseRecord, RequestRecord, ScenarioName
from nvlm_trt.bench.scenarios import Bounds, Scene
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import RequestError
from nvlm_trt.model.tiling import plan_grid

BOUNDS = Bounds(
    tile_size=112,
    tokens_per_tile=16,
    thumbnail=True,
    max_tiles=6,
    prompt_tokens=8192,
    answer_tokens=1024,
    total_tokens=9216,
    streams=8,
)
FRAME, TAG = 20, 3
TTFT_S, STEP_S = 0.5, 0.1


class Answering:
    """Answers every question with as many tokens as it asks for: TTFT half a second, a token each tenth of one.

    Args:
        tells_vision: Whether it says how long vision takes.
        reads_history: Whether earlier turns become tokens of the prompt.
        longest: Tokens of the longest prompt that it takes.
    """

    def __init__(self, *, tells_vision: bool = True, reads_history: bool = True, longest: int = 1 << 20) -> None:
        self.asked: list[Question] = []
        self._tells_vision, self._reads_history, self._longest = tells_vision, reads_history, longest

    def ask(self, question: Question) -> RequestRecord:
        self.asked.append(question)
        tiles = sum(map(tiles_of, question.images))
        history = sum(len(text) for turn in question.history for text in turn) if self._reads_history else 0
        tokens = FRAME + len(question.text) + history + tiles * (16 + TAG)
        if tokens > self._longest:
            raise RequestError("the prompt is longer than the engine", seen=tokens)
        count = question.max_tokens or 1
        return RequestRecord(
            ttft_s=TTFT_S,
            total_s=TTFT_S + (count - 1) * STEP_S,
            prompt_tokens=tokens,
            output_tokens=count,
            images=len(question.images),
            vision_s=0.25 if self._tells_vision else None,
            arrivals_s=tuple(TTFT_S + number * STEP_S for number in range(count)),
        )


class MadeScene(Scene):
    """A scene in which those who are asked together begin at once, to the nanosecond."""

    def together(
        self,
        scenario: ScenarioName,
        case: str,
        questions: Sequence[Question],
        size: int | None = None,
        *,
        last_after: float = 0.0,
    ) -> CaseRecord:
        started = [0.0] * (len(questions) - 1) + [last_after]
        records = tuple(self.ask(question) for question in questions)
        wall = max(begun + record.total_s for begun, record in zip(started, records, strict=True))
        return CaseRecord(
            scenario=scenario, case=case, size=size, wall_s=wall, started_s=tuple(started), requests=records
        )


def tiles_of(file: bytes) -> int:
    """Tiles of a picture's file, thumbnail included."""
    with Image.open(io.BytesIO(file)) as picture:
        return plan_grid(*picture.size, max_tiles=6, tile_size=112).num_tiles
