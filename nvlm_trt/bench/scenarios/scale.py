"""Rates at several sizes: tokens of a prompt, tiles of an image, streams that decode together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from nvlm_trt.bench.record import CaseRecord
from nvlm_trt.bench.scenarios.base import LeftOut, Scenario, Scene
from nvlm_trt.bench.workload import Question

PROMPT_TOKENS: Final = 64
"""Of the prompts of streams: decoding is what is measured."""

STREAM_ANSWER: Final = 64
DECODE_ANSWER: Final = 128


def prefill(sizes: Sequence[int]) -> Scenario:
    """Prompts of text, by their tokens."""

    def measure(scene: Scene, size: int) -> Iterator[CaseRecord]:
        scene.ask(scene.text(size, 1))
        yield scene.alone("prefill", "text", [scene.text(size, 1) for _ in range(scene.repeats)], size)

    return by_size(sizes, measure)


def vision(sizes: Sequence[int]) -> Scenario:
    """Images by their tiles; of whoever does not say how long vision takes, texts of as many tokens too."""

    def measure(scene: Scene, size: int) -> Iterator[CaseRecord]:
        if size not in scene.bounds.grids:
            found = ", ".join(map(str, scene.bounds.grids))
            raise LeftOut(f"no image has {size} tiles; there are images of {found}")
        scene.image_tokens(size)
        images = scene.alone("vision", "image", [scene.about(size) for _ in range(scene.repeats)], size)
        yield images
        if images.requests[0].vision_s is None:
            tokens = images.requests[0].prompt_tokens
            scene.ask(scene.text(tokens, 1))
            yield scene.alone("vision", "text", [scene.text(tokens, 1) for _ in range(scene.repeats)], size)

    return by_size(sizes, measure)


def streams(sizes: Sequence[int]) -> Scenario:
    """Short prompts that come at once, by their number."""

    def measure(scene: Scene, size: int) -> Iterator[CaseRecord]:
        scene.together("streams", "warm-up", _prompts(scene, size, 2))
        for _ in range(scene.repeats):
            yield scene.together("streams", "texts", _prompts(scene, size, STREAM_ANSWER), size)

    return by_size(sizes, measure, together=True)


def decode(sizes: Sequence[int]) -> Scenario:
    """Long answers to short prompts that come at once, by their number."""

    def measure(scene: Scene, size: int) -> Iterator[CaseRecord]:
        if scene.bounds.served:
            raise LeftOut("a server passes text on, not tokens; the scenario streams has what clients get")
        answer = min(DECODE_ANSWER, scene.bounds.answer_tokens)
        scene.together("decode", "warm-up", _prompts(scene, size, 2))
        for _ in range(scene.repeats):
            yield scene.together("decode", "texts", _prompts(scene, size, answer), size)

    return by_size(sizes, measure, together=True)


def _prompts(scene: Scene, count: int, answer: int) -> list[Question]:
    """So many short prompts."""
    length = min(answer, scene.bounds.answer_tokens)
    return [scene.text(PROMPT_TOKENS, length) for _ in range(count)]


def by_size(
    sizes: Sequence[int], measure: Callable[[Scene, int], Iterator[CaseRecord]], *, together: bool = False
) -> Scenario:
    """Every size; one that cannot be measured is left out, and the others are measured all the same.

    Args:
        sizes: Ascending.
        measure: Measures one.
        together: Whether a size is a number of streams, of which only so many are decoded at a time.
    """

    def scenario(scene: Scene) -> Iterator[CaseRecord]:
        most = scene.bounds.streams if together else max(sizes)
        if too_many := ", ".join(str(size) for size in sizes if size > most):
            scene.leave_out(LeftOut(f"not {too_many} streams, as at most {most} are decoded at a time"))
        for size in (size for size in sizes if size <= most):
            try:
                yield from measure(scene, size)
            except LeftOut as reason:
                scene.leave_out(reason)

    return scenario
