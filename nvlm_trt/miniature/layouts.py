"""Where things lie in pictures: the sealed test arranges them as no picture of training does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvlm_trt.miniature.assets import Split
from nvlm_trt.miniature.questions import Rng

Span = tuple[float, float]
"""The least and the most."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Distances and sizes, as shares of the picture.

    Attributes:
        off_place: How far an object lies from the middle of its place, across and down.
        off_band: How far text lies above or below the middle of its band.
        bar: Half the width of a bar, as a share of the room that it has.
    """

    off_place: Span
    off_band: Span
    bar: float


_LEARNED = Layout(off_place=(0.0, 0.05), off_band=(0.0, 0.06), bar=0.28)
LAYOUTS: dict[Split, Layout] = {
    "train": _LEARNED,
    "validation": _LEARNED,
    "test": Layout(off_place=(0.05, 0.075), off_band=(0.06, 0.09), bar=0.22),
}


def off(span: Span, rng: Rng) -> float:
    """A distance of a span, to either side."""
    least, most = span
    drawn = float(rng.uniform(-most, most))
    return drawn * (most - least) / most + math.copysign(least, drawn)


def middle(third: int) -> float:
    """The middle of a third of the picture, across or down, as a share of it."""
    return (1 + 2 * third) / 6


def is_held_back(across: float, down: float) -> bool:
    """Whether the sealed test alone has objects there, in shares of the picture: far off the middle of a place."""
    least, most = LAYOUTS["test"].off_place
    return all(least <= abs(share - middle(int(share * 3))) <= most for share in (across, down))
