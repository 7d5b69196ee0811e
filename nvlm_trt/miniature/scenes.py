"""Pictures with questions whose answers need looking, and questions without pictures; every scene is drawn from a seed.

A scene gives its questions as one conversation, in random order. `Example.turns` of training holds several; the tests
ask one, or a follow-up after one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nvlm_trt.miniature.assets import Split, words
from nvlm_trt.miniature.canvas import COLOURS, OBJECT_COLOURS, SHAPES, Canvas, advances_of, blank
from nvlm_trt.miniature.layouts import LAYOUTS, off
from nvlm_trt.miniature.placing import draw_on_places, few, scatter, squeeze
from nvlm_trt.miniature.questions import (
    Kind,
    Rng,
    Turn,
    about_colours,
    about_counts,
    about_places,
    asked_text,
    some,
)

Grids = tuple[tuple[tuple[int, int], float], ...]
"""Columns and rows of tiles that a picture is drawn for, and their shares."""
GRIDS: Grids = (((1, 1), 0.5), ((2, 1), 0.08), ((1, 2), 0.08), ((2, 2), 0.14), ((3, 2), 0.1), ((2, 3), 0.1))
ONE_TILE: Grids = (((1, 1), 1.0),)
WIDE_GRIDS = ((3, 2), (2, 3))
TEXT_COLOURS = tuple(COLOURS)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation about pictures.

    Attributes:
        pictures: In the order of their ``<image>``; none for text alone.
        turns: Questions and answers, in an order in which later ones may lean on earlier ones.
    """

    pictures: tuple[Canvas, ...]
    turns: tuple[Turn, ...]


def objects(rng: Rng, split: Split, tile: int, grids: Grids = GRIDS) -> Example:
    """Shapes in colours on a loose grid of nine places: colour, shape, position, counting, which tile."""
    columns, rows = _grid(rng, grids)
    canvas = blank(columns, rows, tile, split, rng)
    count = int(rng.integers(1, 9))
    kinds = scatter(canvas, split, count, rng, few(SHAPES, rng), few(OBJECT_COLOURS, rng))
    turns = [*about_colours(kinds, rng), *about_places(canvas, kinds, rng), *about_counts(kinds, rng)]
    return Example((canvas,), tuple(some(turns, 8, rng)))


def loose(rng: Rng, split: Split, tile: int, grids: Grids = GRIDS) -> Example:
    """Shapes on no places, some of them partly under others: colour, shape, counting.

    No test asks about such pictures. Whoever counts by nine places alone counts one too few where two lie close.
    """
    columns, rows = _grid(rng, grids)
    canvas = blank(columns, rows, tile, split, rng)
    count = int(rng.integers(1, 9))
    some_shapes, some_colours = few(SHAPES, rng), few(OBJECT_COLOURS, rng)
    kinds: list[Kind] = []
    while len(kinds) < count:
        shape, colour = str(rng.choice(some_shapes)), str(rng.choice(some_colours))
        if squeeze(canvas, shape, colour, (0.085, 0.14), rng):
            kinds.append((shape, colour, ""))
    return Example((canvas,), tuple(some([*about_colours(kinds, rng), *about_counts(kinds, rng)], 6, rng)))


def signs(rng: Rng, split: Split, tile: int, grids: Grids = GRIDS) -> Example:
    """A number, a word or both, large enough to read in the thumbnail."""
    columns, rows = _grid(rng, grids)
    canvas = blank(columns, rows, tile, split, rng)
    width, height = canvas.size
    both = bool(rng.random() < 0.5)
    kinds = ["number", "word"] if both else [str(rng.choice(["number", "word"]))]
    rng.shuffle(kinds)
    turns = []
    bands = [0.27, 0.73] if both else [float(rng.uniform(0.3, 0.7))]
    for kind, band in zip(kinds, bands, strict=True):
        text = number(rng) if kind == "number" else word(rng, split)
        most = min(height * (0.27 if both else 0.32), width * 0.92 / (0.95 * len(text)))
        least = max(height / tile, width / tile) * 10.5
        tall = float(rng.uniform(min(least, most), most)) * 0.85
        room = max(0.0, width - tall * 1.05 * len(text)) / 2
        x, y = width / 2 + float(rng.uniform(-room, room)) * 0.9, height * (band + off(LAYOUTS[split].off_band, rng))
        colour = _write(canvas, text, x, y, tall, rng, pitch=max(height / tile, width / tile) * 7.5)
        turns.append(asked_text(kind, text, rng))
        turns.append(Turn(f"What colour is the {kind}?", colour, "colour"))
        if both:
            turns.append(
                Turn(f"Is the {kind} at the top or at the bottom?", "top" if band < 0.5 else "bottom", "position")
            )
    if not both and rng.random() < 0.5:
        turns.append(Turn("Is there a number or a word?", kinds[0], "shape"))
    return Example((canvas,), tuple(some(turns, 6, rng)))


def tiny(rng: Rng, split: Split, tile: int) -> Example:
    """A number too small for the thumbnail, on a picture of six tiles with larger things."""
    columns, rows = WIDE_GRIDS[rng.integers(2)]
    canvas = blank(columns, rows, tile, split, rng)
    kinds = scatter(canvas, split, int(rng.integers(0, 4)), rng)
    text = "".join(str(rng.integers(10)) for _ in range(int(rng.integers(3, 5))))
    scale = canvas.scale
    tall = scale * float(rng.uniform(11, 13.5))
    pitch = scale * float(rng.uniform(8.5, 10))
    half = pitch * len(text) / 2 + 4 * scale
    for _ in range(40):
        column, row = int(rng.integers(columns)), int(rng.integers(rows))
        x = (column + float(rng.uniform(0, 1))) * tile * scale
        y = (row + float(rng.uniform(0, 1))) * tile * scale
        x = float(np.clip(x, column * tile * scale + half, (column + 1) * tile * scale - half))
        y = float(np.clip(y, row * tile * scale + tall, (row + 1) * tile * scale - tall))
        if all(np.hypot(x - item.x, y - item.y) > item.radius * 1.2 + half for item in canvas.items):
            break
    _write(canvas, text, x, y, tall, rng, pitch=pitch)
    question = str(
        rng.choice(["What is the tiny number?", "Read the tiny number.", "Which tiny number is written here?"])
    )
    turns = [Turn(question, text, "tiny")]
    others = [Turn("Which tile holds the tiny number?", f"tile {row * columns + column + 1}", "tile")]
    others += [*about_colours(kinds, rng), *about_places(canvas, kinds, rng)]
    turns += some(others, 4, rng)
    order = rng.permutation(len(turns))
    return Example((canvas,), tuple(turns[index] for index in order))


def chart(rng: Rng, split: Split, tile: int, grids: Grids = GRIDS) -> Example:
    """A bar chart: letters below, values above the bars."""
    columns, rows = _grid(rng, grids)
    canvas = blank(columns, rows, tile, split, rng, busy=False)
    width, height = canvas.size
    count = int(rng.integers(2, 5))
    letters = (
        LETTERS[:count] if rng.random() < 0.5 else "".join(sorted(rng.choice(list(LETTERS), count, replace=False)))
    )
    values = rng.choice(np.arange(1, 21), count, replace=False)
    colours = rng.choice(OBJECT_COLOURS, count, replace=False)
    tall = min(height * 0.095, width / count * 0.3)
    tall = max(tall, max(height, width) / tile * 8 if columns * rows == 1 else tall)
    bottom, top = height * 0.97 - tall * 1.7, height * 0.03 + tall * 1.6
    unit = (bottom - top) / max(values)
    for index, (letter, value, colour) in enumerate(zip(letters, values, colours, strict=True)):
        x = width * (index + 0.5) / count
        half = width / count * LAYOUTS[split].bar
        canvas.bar(str(colour), (x - half, bottom - unit * value, x + half, bottom), rng)
        ink = canvas.readable(x, bottom + tall * 0.9, tall / 2, rng, ("black", "white", "blue", "red"))
        canvas.text(letter, x, bottom + tall * 0.9, tall, ink, rng)
        value_y = bottom - unit * value - tall * 0.8
        canvas.text(str(value), x, value_y, tall, canvas.readable(x, value_y, tall / 2, rng, ("black", "white")), rng)
    pick, other = (int(index) for index in rng.choice(count, 2, replace=False))
    most, least = int(np.argmax(values)), int(np.argmin(values))
    turns = [
        Turn(f"What is the value of bar {letters[pick]}?", str(values[pick]), "chart"),
        Turn(f"What is the value of the {colours[other]} bar?", str(values[other]), "chart"),
        Turn("Which bar is the highest?", letters[most], "chart"),
        Turn("Which bar is the lowest?", letters[least], "chart"),
        Turn(f"What colour is bar {letters[other]}?", str(colours[other]), "chart"),
        Turn("How many bars are there?", str(count), "chart"),
    ]
    return Example((canvas,), tuple(some(turns, 6, rng)))


def compare(rng: Rng, split: Split, tile: int) -> Example:
    """Two pictures: which one holds, has more, or says what."""
    if rng.random() < 0.5:
        return _compare_objects(rng, split, tile)
    pictures, texts = [], []
    for _ in range(2):
        canvas = blank(1, 1, tile, split, rng)
        width, height = canvas.size
        text = str(rng.integers(1, 100)) if rng.random() < 0.7 else number(rng)
        tall = min(height * 0.4, width * 0.85 / len(text)) * float(rng.uniform(0.6, 1))
        _write(canvas, text, width / 2, height * float(rng.uniform(0.35, 0.65)), tall, rng, pitch=canvas.scale * 8)
        pictures.append(canvas)
        texts.append(text)
    turns = [
        Turn("What number is in the first picture?", texts[0], "compare"),
        Turn("What number is in the second picture?", texts[1], "compare"),
    ]
    if texts[0] != texts[1]:
        larger = _which(int(texts[0]) > int(texts[1]))
        turns.append(Turn("Which picture shows the larger number?", larger, "compare"))
    return Example(tuple(pictures), tuple(some(turns, 3, rng)))


def follow_up(rng: Rng, split: Split, tile: int, grids: Grids = GRIDS) -> Example:
    """Questions that lean on the one before."""
    columns, rows = _grid(rng, grids)
    canvas = blank(columns, rows, tile, split, rng)
    count = int(rng.integers(2, 6))
    shapes = rng.permutation(SHAPES)[:count]
    colours = rng.permutation(OBJECT_COLOURS)[:count]
    kinds = draw_on_places(canvas, split, list(zip(map(str, shapes), map(str, colours), strict=True)), rng)
    shape, colour, place = kinds[rng.integers(count)]
    if rng.random() < 0.5:
        first = Turn(f"Which shape is {colour}?", shape, "shape")
        then = Turn("Where is it?", place, "follow-up")
    else:
        first = Turn(f"Where is the {shape}?", place, "position")
        then = Turn("What colour is it?", colour, "follow-up")
    more = some((then, Turn("And how many shapes are there?", str(count), "follow-up")), 2, rng)
    return Example((canvas,), (first, *more))


def arithmetic(rng: Rng, split: Split, tile: int) -> Example:
    """Sums and differences."""
    turns = []
    for _ in range(5):
        left, right = int(rng.integers(0, 21)), int(rng.integers(0, 21))
        if rng.random() < 0.5:
            turns.append(Turn(f"What is {left} plus {right}?", str(left + right), "text"))
        else:
            turns.append(Turn(f"What is {max(left, right)} minus {min(left, right)}?", str(abs(left - right)), "text"))
    return Example((), tuple(turns))


def copying(rng: Rng, split: Split, tile: int) -> Example:
    """Words and numbers to be repeated."""
    turns = []
    for _ in range(5):
        said = " ".join(word(rng, split) if rng.random() < 0.5 else number(rng) for _ in range(int(rng.integers(1, 3))))
        turns.append(Turn(f"Repeat: {said}", said, "text"))
    return Example((), tuple(turns))


def dense(rng: Rng, split: Split, tile: int) -> Canvas:
    """A picture full of text and shapes of every size, which nobody asks about: the vision encoder learns from it.

    Nothing covers anything: a label of what cannot be seen would teach the encoder to guess.
    """
    columns, rows = _grid(rng, GRIDS)
    canvas = blank(columns, rows, tile, split, rng)
    width, height = canvas.size
    gap = 4 * canvas.scale
    y = gap
    while y < height - 12 * canvas.scale:
        tall = min(canvas.scale * float(np.exp(rng.uniform(np.log(9), np.log(36)))), height - y)
        x = float(rng.uniform(0, 20)) * canvas.scale
        while x < width:
            if rng.random() < 0.3:
                radius = max(tall * 0.6, 7 * canvas.scale)
                colour = canvas.readable(x + radius, y + tall / 2, radius, rng, OBJECT_COLOURS)
                canvas.shape(str(rng.choice(SHAPES)), colour, x + 1.1 * radius, y + tall / 2, radius, rng)
                x += 2.2 * radius
            elif rng.random() < 0.85:
                text = number(rng) if rng.random() < 0.5 else word(rng, split)
                face = canvas.typeface(tall, rng)
                span = sum(advances_of(text, face, 8 * canvas.scale))
                if x + span < width + span / 2:  # at most half of it beyond the border
                    colour = canvas.readable(x + span / 2, y + tall / 2, span / 2, rng, TEXT_COLOURS)
                    middle = x + span / 2, y + tall / 2
                    canvas.text(text, *middle, tall, colour, rng, face=face, pitch=8 * canvas.scale)
                x += span
            x += float(rng.uniform(4, 24)) * canvas.scale
        y += max(tall * 1.3, tall / 2 + 9 * canvas.scale) + gap
    return canvas


def scattered(rng: Rng, split: Split, tile: int) -> Canvas:
    """Shapes anywhere, up to a dozen, at most a third of one under another, which nobody asks about."""
    columns, rows = _grid(rng, GRIDS)
    canvas = blank(columns, rows, tile, split, rng)
    for _ in range(int(rng.integers(3, 13))):
        squeeze(canvas, str(rng.choice(SHAPES)), str(rng.choice(OBJECT_COLOURS)), (0.07, 0.15), rng)
    return canvas


Scene = Callable[[Rng, Split, int], Example]
Shares = tuple[tuple[Scene, float], ...]
SCENES: Shares = (
    (objects, 0.28),
    (signs, 0.24),
    (tiny, 0.12),
    (chart, 0.1),
    (compare, 0.09),
    (follow_up, 0.07),
    (arithmetic, 0.06),
    (copying, 0.04),
)
ONE_TILE_SCENES: Shares = (
    (partial(objects, grids=ONE_TILE), 0.28),
    (partial(signs, grids=ONE_TILE), 0.36),
    (partial(chart, grids=ONE_TILE), 0.1),
    (compare, 0.09),
    (partial(follow_up, grids=ONE_TILE), 0.07),
    (arithmetic, 0.06),
    (copying, 0.04),
)
"""The easier half: one tile a picture."""


def draw(rng: Rng, split: Split, tile: int, scenes: Shares = SCENES) -> Example:
    """A scene of one of some kinds, in their shares."""
    kinds, shares = zip(*scenes, strict=True)
    kind: Scene = kinds[rng.choice(len(kinds), p=shares)]
    return kind(rng, split, tile)


SEEN: tuple[tuple[Scene | Callable[[Rng, Split, int], Canvas], float], ...] = (
    (dense, 0.4),
    (scattered, 0.14),
    (objects, 0.1),
    (signs, 0.18),
    (tiny, 0.08),
    (chart, 0.07),
    (compare, 0.03),
)
"""What the vision encoder is shown."""


def number(rng: Rng) -> str:
    """Two to five digits, the first one not 0."""
    return str(rng.integers(1, 10)) + "".join(str(rng.integers(10)) for _ in range(int(rng.integers(1, 5))))


def word(rng: Rng, split: Split) -> str:
    """A word of the split; in training half are letters at random, so that letters are read and not guessed."""
    if split == "train" and rng.random() < 0.5:
        return "".join(rng.choice(list(LETTERS), int(rng.integers(3, 7))))
    return str(rng.choice(words(split)))


def _compare_objects(rng: Rng, split: Split, tile: int) -> Example:
    pictures, found = [], []
    for _ in range(2):
        canvas = blank(1, 1, tile, split, rng)
        found.append(scatter(canvas, split, int(rng.integers(1, 7)), rng))
        pictures.append(canvas)
    turns = []
    if len(found[0]) != len(found[1]):
        turns.append(Turn("Which picture has more shapes?", _which(len(found[0]) > len(found[1])), "compare"))
    shapes = [{shape for shape, _, _ in kinds} for kinds in found]
    for shape in sorted(shapes[0] ^ shapes[1])[:3]:
        turns.append(Turn(f"Which picture shows a {shape}?", _which(shape in shapes[0]), "compare"))
    colours = [{colour for _, colour, _ in kinds} for kinds in found]
    for colour in sorted(colours[0] ^ colours[1])[:2]:
        turns.append(Turn(f"In which picture is something {colour}?", _which(colour in colours[0]), "compare"))
    index = int(rng.integers(2))
    name = ("first", "second")[index]
    turns.append(Turn(f"How many shapes are in the {name} picture?", str(len(found[index])), "compare"))
    return Example(tuple(pictures), tuple(some(turns, 6, rng)))


def _which(first: bool) -> str:
    return "first" if first else "second"


def _write(canvas: Canvas, text: str, x: float, y: float, tall: float, rng: Rng, *, pitch: float) -> str:
    """Write text in a colour that stands out, two times in five on a sign of its own; returns the colour."""
    half = len(text) * max(tall * 0.85, pitch) / 2
    if rng.random() < 0.4:
        margin = tall * 0.45
        canvas.plate((x - half - margin, y - tall / 2 - margin, x + half + margin, y + tall / 2 + margin), rng)
    colour = canvas.readable(x, y, max(half * 0.7, tall / 2), rng, TEXT_COLOURS)
    canvas.text(text, x, y, tall, colour, rng, pitch=pitch)
    return colour


def _grid(rng: Rng, grids: Grids) -> tuple[int, int]:
    sizes, shares = zip(*grids, strict=True)
    size: tuple[int, int] = sizes[rng.choice(len(sizes), p=shares)]
    return size
