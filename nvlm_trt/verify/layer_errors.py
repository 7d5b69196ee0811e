"""Errors layer by layer: which layer is worst, and the table that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer is from the source's when it is given the reference's own inputs.

    Attributes:
        part: "vision" or "decoder".
        layer: Place in the whole model.
        worst: Which of its outputs, or of its linear layers, is furthest off.
        error: Of that one, the root of summed squares of the difference over all tokens, for the worst of its values;
            over the root mean square of the same over all values of the reference. No unit.
        yardstick: The same for independent rounding to the precision; None where that was not measured.
    """

    part: str
    layer: int
    worst: str
    error: float
    yardstick: float | None = None

    @property
    def badness(self) -> float:
        """What layers are ordered by: the error, over the yardstick if there is one; not a number is worst."""
        value = self.error if not self.yardstick else self.error / self.yardstick
        return math.inf if math.isnan(value) else value


PROJECTOR = -1
"""What the projector is called among the layers of vision."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        part: "vision" or "decoder".
        layer: Place in the whole model; PROJECTOR for the projector.
        kl: Mean KL divergence in nats from the reference before each token of its answers, with this layer quantised
            and all others in float32 (decoder) or bfloat16 (vision).
    """

    part: str
    layer: int
    kl: float

    @property
    def name(self) -> str:
        """In words."""
        return "projector" if self.layer == PROJECTOR else f"{self.part} layer {self.layer}"


def worst_layers(errors: Sequence[LayerError]) -> list[LayerError]:
    """The worst layer of every part."""
    parts = dict.fromkeys(each.part for each in errors)
    return [max((each for each in errors if each.part == part), key=lambda each: each.badness) for part in parts]


def said_worst(errors: Sequence[LayerError]) -> str:
    """The worst layers in words."""
    worst = worst_layers(errors)
    return ", ".join(f"{each.part} layer {each.layer} ({each.worst}, error {each.error:.3g})" for each in worst)


def table(errors: Sequence[LayerError]) -> list[str]:
    """One line a layer, the worst of each part marked."""
    marked = worst_layers(errors)
    lines = [f"{'part':<8} {'layer':>5} {'worst output':<16} {'error':>10} {'yardstick':>10}"]
    for each in errors:
        yardstick = "-" if each.yardstick is None else f"{each.yardstick:.3g}"
        mark = "  <- worst" if each in marked else ""
        lines.append(f"{each.part:<8} {each.layer:>5} {each.worst:<16} {each.error:>10.3g} {yardstick:>10}{mark}")
    return lines
