"""Objects in a picture: on the nine places, or on none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvlm_trt.miniature.assets import Split
from nvlm_trt.miniature.canvas import OBJECT_COLOURS, SHAPES, Canvas
from nvlm_trt.miniature.layouts import LAYOUTS, is_held_back, middle, off
from nvlm_trt.miniature.questions import PLACES, Kind, Rng


def scatter(
    canvas: Canvas,
    split: Split,
    count: int,
    rng: Rng,
    shapes: Sequence[str] = SHAPES,
    colours: Sequence[str] = OBJECT_COLOURS,
) -> list[Kind]:
    """Draw so many objects of any of the shapes and colours."""
    return draw_on_places(
        canvas, split, [(str(rng.choice(shapes)), str(rng.choice(colours))) for _ in range(count)], rng
    )


def draw_on_places(canvas: Canvas, split: Split, pairs: Sequence[tuple[str, str]], rng: Rng) -> list[Kind]:
    """Draw objects in different places of nine."""
    width, height = canvas.size
    side, layout = min(width, height), LAYOUTS[split]
    places = list(rng.permutation(9))
    kinds = []
    for shape, colour in pairs:
        radius = side * float(rng.uniform(0.085, 0.14))
        place = int(places.pop())
        x = width * middle(place % 3) + width * off(layout.off_place, rng)
        y = height * middle(place // 3) + height * off(layout.off_place, rng)
        canvas.shape(shape, colour, x, y, radius, rng)
        kinds.append((shape, colour, PLACES[place]))
    return kinds


def few(kinds: Sequence[str], rng: Rng) -> list[str]:
    """One to four of them."""
    return list(map(str, rng.choice(kinds, min(len(kinds), int(rng.integers(1, 5))), replace=False)))


def squeeze(canvas: Canvas, shape: str, colour: str, radii: tuple[float, float], rng: Rng) -> bool:
    """Draw an object anywhere but where the sealed test has them, at most a third of it over another, if chance lets.

    Args:
        canvas: The picture.
        shape: What is drawn.
        colour: In which colour.
        radii: The least and the most, as shares of the picture's shorter side.
        rng: Decides.
    """
    width, height = canvas.size
    radius = min(width, height) * float(rng.uniform(*radii))
    x, y = float(rng.uniform(radius, width - radius)), float(rng.uniform(radius, height - radius))
    if is_held_back(x / width, y / height):
        return False
    if any(np.hypot(x - item.x, y - item.y) <= 0.65 * (radius + item.radius) for item in canvas.items):
        return False
    canvas.shape(shape, colour, x, y, radius, rng)
    return True
