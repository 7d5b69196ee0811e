"""What is not done twice: an image that comes back, and a conversation that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nvlm_trt.bench.record import CaseRecord
from nvlm_trt.bench.scenarios.base import LeftOut, Scene
from nvlm_trt.bench.workload import PROMPT, Question
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER

ANSWER: Final = "It is a picture."
"""What the history says was answered: the same for everybody, so that the second prompts are of one length."""


def repeat(scene: Scene) -> Iterator[CaseRecord]:
    """An image at first, again under another text in front of it, and again under the first question.

    The text in front keeps keys and values of the first prompt from being of use: only vision can be.
    """
    tiles = _largest(scene)
    firsts, others, agains = [], [], []
    for _ in range(scene.repeats):
        picture = scene.picture(tiles)
        question = Question(f"{IMAGE_PLACEHOLDER}\n{scene.digits()}: {PROMPT}", (picture,), max_tokens=1)
        other = Question(f"{scene.digits()}: {IMAGE_PLACEHOLDER}\n{PROMPT}", (picture,), max_tokens=1)
        firsts.append(scene.alone("repeat", "first", [question]))
        others.append(scene.alone("repeat", "other text in front", [other]))
        agains.append(scene.alone("repeat", "again", [question]))
    yield from (*firsts, *others, *agains)


def turns(scene: Scene) -> Iterator[CaseRecord]:
    """The first question about an image, and the next one with the first in its history."""
    tiles = _largest(scene)
    firsts, seconds = [], []
    for _ in range(scene.repeats):
        picture = scene.picture(tiles)
        text = f"{IMAGE_PLACEHOLDER}\n{scene.digits()}: {PROMPT}"
        firsts.append(scene.alone("turns", "first", [Question(text, (picture,), max_tokens=1)]))
        next_one = Question(f"{scene.digits()}: And what else?", (picture,), ((text, ANSWER),), 1)
        seconds.append(scene.alone("turns", "second", [next_one]))
    if seconds[-1].requests[0].prompt_tokens <= firsts[-1].requests[0].prompt_tokens:
        raise LeftOut("whoever is asked does not read a history")
    yield from (*firsts, *seconds)


def _largest(scene: Scene) -> int:
    """Tiles of the largest image, asked about once so that its shape is known.

    Raises:
        LeftOut: it does not fit.
    """
    tiles = scene.bounds.most_tiles
    scene.image_tokens(tiles)
    return tiles
