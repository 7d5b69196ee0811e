"""The requests of one verification, with the tiles that take the place of their own in canaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_trt.errors import EngineError, ImageRejected, PromptError
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.verify.answers import ImageQuestion, Tables
from nvlm_trt.verify.cases import Case, Limits, Tiles, image_case, make_cases, sample_case, swapped_tiles
from nvlm_trt.verify.golden import Golden

Floats = npt.NDArray[np.float32]

CANARY_SAMPLES = 16
"""Samples of the task that are shown beside the cases: on these a trained model has clear answers."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the reference and what is judged are shown.

    Attributes:
        cases: The requests of the recipe's `verify_prompts`, and one with an image if these have none.
        others: Samples of a task, all with images.
        swapped: Of each of both, in order, the tiles that take the place of its own; none where it has no image.
    """

    cases: tuple[Case, ...]
    others: tuple[Case, ...]
    swapped: tuple[Tiles, ...]

    @property
    def everything(self) -> tuple[Case, ...]:
        """Cases and others."""
        return (*self.cases, *self.others)

    def cases_alone(self) -> Shown:
        """The cases without canaries: half the tiles, where no answers are judged."""
        return Shown(self.cases, (), tuple(case.tiles[:0] for case in self.cases))

    def tables(
        self, encode: Callable[[Sequence[Tiles]], Sequence[Floats | None]], *, control: bool
    ) -> list[Tables | None]:
        """Prompt tables of each request; None where it has no image.

        Args:
            encode: From the tiles of requests to their tables.
            control: Whether the own images are encoded a second time.
        """
        right = [case.tiles for case in self.everything]
        encoded = encode([*right, *self.swapped, *(right if control else [])])
        count = len(right)
        again = encoded[2 * count :] if control else encoded[:count]
        return [
            None if own is None or same is None else Tables(own, same, own if other is None else other)
            for own, other, same in zip(encoded[:count], encoded[count : 2 * count], again, strict=True)
        ]

    def questions(
        self,
        goldens: Sequence[Golden],
        stop_id: int,
        by_reference: Sequence[Tables | None],
        by_subject: Sequence[Tables | None],
    ) -> list[ImageQuestion]:
        """The requests with images.

        Args:
            goldens: The reference's answer to each request.
            stop_id: What ends an answer.
            by_reference: Its tables, one a request.
            by_subject: Those of what is judged.
        """
        return [
            ImageQuestion(golden.ids, golden.said(stop_id), theirs, ours)
            for golden, theirs, ours in zip(goldens, by_reference, by_subject, strict=True)
            if theirs is not None and ours is not None
        ]


def right_tables(tables: Sequence[Tables | None]) -> list[Floats | None]:
    """The prompt tables of the requests' own images."""
    return [None if each is None else each.right for each in tables]


def show(
    config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits, count: int, samples: Sequence[Sample] = ()
) -> Shown:
    """Choose the requests.

    Args:
        config: The model.
        tokenizer: Its tokenizer.
        limits: What a request may hold.
        count: Requests with 0, 1 and 2 images in turn.
        samples: Of a task; the first ones with images that fit are shown too, each in canaries with those of the next
            one that has others. Those that an engine refuses are passed over.

    Returns:
        At least one request, and at least one with an image.

    Raises:
        EngineError: the limits are too narrow for any question, or for one with an image.
    """
    cases = make_cases(config, tokenizer, limits, count)
    if not cases:
        raise EngineError("the engine is too short for any question", seen=f"{limits.input_len} tokens")
    if not any(case.pictures for case in cases):
        cases.append(image_case(config, tokenizer, limits))
    asked = _sample_cases(config, tokenizer, limits, samples)
    swapped = [swapped_tiles(case, config, limits) for case in cases]
    for place, case in enumerate(asked):
        swapped.append(_next_tiles(case, [*asked[place + 1 :], *asked[:place]], config, limits))
    return Shown(tuple(cases), tuple(asked), tuple(swapped))


def _next_tiles(case: Case, others: Sequence[Case], config: NvlmConfig, limits: Limits) -> Tiles:
    """Tiles of the first other case that has others than this one; its own inverted and mirrored if there is none."""
    swaps = (swapped_tiles(case, config, limits, other.pictures) for other in others)
    for tiles in swaps:
        if not np.array_equal(tiles, case.tiles):
            return tiles
    return swapped_tiles(case, config, limits)


def _sample_cases(
    config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits, samples: Sequence[Sample]
) -> list[Case]:
    cases: list[Case] = []
    for sample in samples:
        if len(cases) == CANARY_SAMPLES:
            break
        if not 0 < len(sample.images) <= limits.images or sample.max_tiles is not None:
            continue
        try:
            case = sample_case(sample, config, tokenizer, limits)
        except (ImageRejected, PromptError):  # the task counts it as wrong, and says why
            continue
        if len(case.prompt.input_ids) <= limits.input_len:
            cases.append(case)
    return cases
