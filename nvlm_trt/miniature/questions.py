"""Questions about what a picture shows, with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvlm_trt.miniature.canvas import OBJECT_COLOURS, SHAPES, Canvas

PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
BORDER = 0.12
"""Share of a tile's side next to its border: of what is centred there, nobody asks which tile holds it."""

Rng = np.random.Generator

Kind = tuple[str, str, str]
"""Shape, colour and place."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and what it tests."""

    question: str
    answer: str
    category: str


def about_colours(kinds: Sequence[Kind], rng: Rng) -> list[Turn]:
    """The colour of the only object of a shape, and the shape of the only one of a colour; three at most."""
    turns = []
    for shape, colour, _ in kinds:
        if sum(other == shape for other, _, _ in kinds) == 1:
            turns.append(Turn(f"What colour is the {shape}?", colour, "colour"))
        if sum(other == colour for _, other, _ in kinds) == 1:
            turns.append(Turn(str(rng.choice([f"Which shape is {colour}?", f"What is {colour}?"])), shape, "shape"))
    return some(turns, 3, rng)


def about_places(canvas: Canvas, kinds: Sequence[Kind], rng: Rng) -> list[Turn]:
    """Where an object is, what is at a place, and which tile holds it; four at most. `kinds` are the first items."""
    turns = []
    for (shape, colour, place), item in zip(kinds, canvas.items, strict=False):
        if sum(other[:2] == (shape, colour) for other in kinds) > 1:
            continue
        alone = sum(other == shape for other, _, _ in kinds) == 1
        name = shape if alone and rng.random() < 0.6 else f"{colour} {shape}"
        turns.append(Turn(f"Where is the {name}?", place, "position"))
        turns.append(Turn(f"What shape is at the {place}?", shape, "shape"))
        tile = _tile_of(canvas, item.x, item.y)
        if tile is not None:
            turns.append(Turn(f"Which tile holds the {name}?", f"tile {tile}", "tile"))
    return some(turns, 4, rng)


def about_counts(kinds: Sequence[Kind], rng: Rng) -> list[Turn]:
    """How many objects there are, of a shape or of a colour, sometimes one that is not there; two at most."""
    turns = [Turn("How many shapes are there?", str(len(kinds)), "count")]
    shape, colour, _ = kinds[rng.integers(len(kinds))]
    if rng.random() < 0.15:
        shape = str(rng.choice(SHAPES))
    if rng.random() < 0.15:
        colour = str(rng.choice(OBJECT_COLOURS))
    turns.append(Turn(f"How many {_plural(shape)} are there?", str(sum(kind[0] == shape for kind in kinds)), "count"))
    turns.append(Turn(f"How many {colour} shapes are there?", str(sum(kind[1] == colour for kind in kinds)), "count"))
    return some(turns, 2, rng)


def _tile_of(canvas: Canvas, x: float, y: float) -> int | None:
    """Number of the tile that holds a place well inside, from 1; None near a border or when there is one tile."""
    if canvas.columns * canvas.rows == 1:
        return None
    width, height = canvas.size
    across, down = x / width * canvas.columns, y / height * canvas.rows
    if min(across % 1, 1 - across % 1, down % 1, 1 - down % 1) < BORDER:
        return None
    return int(down) * canvas.columns + int(across) + 1


def asked_text(kind: str, text: str, rng: Rng) -> Turn:
    """What a "number" or a "word" says."""
    questions = {
        "number": ("What number is shown?", "Read the number.", "Which number is written here?"),
        "word": ("What word is shown?", "Read the word.", "What does the sign say?"),
    }[kind]
    return Turn(str(rng.choice(questions)), text, "ocr")


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def some(turns: Sequence[Turn], count: int, rng: Rng) -> list[Turn]:
    """At most `count` of the turns in any order: each one is sometimes the first, as the tests ask it."""
    return [turns[index] for index in rng.permutation(len(turns))[:count]]
