"""What is asked: questions of the miniature's own task, about pictures of many sizes and forms, drawn from a seed."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from nvlm_trt.client import Options
from nvlm_trt.eval.tasks import Sample, read_tasks
from nvlm_trt.miniature.shipped import GATE_TASK
from nvlm_trt.model.prompt import Turn

FORMS: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    ("PNG", {}),
    ("JPEG", {"quality": 90}),
    ("WEBP", {"quality": 90}),
    ("BMP", {}),
)
SIDES: Final = (48, 112, 224, 336, 640, 1024, 1600)
"""Longer sides of pictures, in pixels; 112 is the miniature's tile."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request that has one right answer.

    Attributes:
        name: Tells it from the others.
        question: The user's last message; places of images are named in it or in the history.
        history: Earlier questions and answers.
        images: Files, in the order of their places.
        options: How the answer is made; always with a number of tokens.
    """

    name: str
    question: str
    history: tuple[Turn, ...]
    images: tuple[bytes, ...]
    options: Options


def make_cases(seed: int, count: int) -> list[Case]:
    """The cases of a seed; equal for equal arguments."""
    chance = random.Random(seed)
    samples = list(read_tasks(GATE_TASK))
    chance.shuffle(samples)
    return [_case(samples[place % len(samples)], place, chance) for place in range(count)]


def _case(sample: Sample, place: int, chance: random.Random) -> Case:
    images = tuple(_variant(path.read_bytes(), chance) for path in sample.images)
    return Case(f"{sample.id}-{place}", sample.question, tuple(sample.history), images, _options(chance))


def _options(chance: random.Random) -> Options:
    """Two of three are greedy; one of three is longer than the model would make it."""
    tokens = chance.choice((16, 24, 96))
    least = tokens if tokens == 96 else None
    if chance.random() < 2 / 3:
        return Options(max_tokens=tokens, min_tokens=least)
    return Options(max_tokens=tokens, min_tokens=least, temperature=0.7, top_p=0.9, seed=chance.randrange(1 << 32))


def _variant(file: bytes, chance: random.Random) -> bytes:
    """A picture in another size and form."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    side = chance.choice(SIDES)
    scale = side / max(image.size)
    width, height = (max(2, round(length * scale)) for length in image.size)
    form, settings = chance.choice(FORMS if side <= 640 else FORMS[:3])
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(out, form, **settings)
    return out.getvalue()


def said_of(case: Case) -> Sequence[tuple[str, str]]:
    """The conversation of a case as roles and texts."""
    turns = [(role, text) for turn in case.history for role, text in zip(("user", "assistant"), turn, strict=True)]
    return [*turns, ("user", case.question)]
