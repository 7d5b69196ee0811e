"""How a cost grows: a power law through a few points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """``cost = factor * size ** exponent``.

    Attributes:
        factor: The cost of size 1.
        exponent: 1 is linear, 0 constant.
        residual: Root mean square of ln(cost / fitted cost): about the relative distance of a point from the line.
    """

    factor: float
    exponent: float
    residual: float

    def __call__(self, size: float) -> float:
        """The fitted cost of a size."""
        return float(self.factor * size**self.exponent)


def fit_power_law(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
    """Least squares of the logarithms.

    Args:
        sizes: Two or more different sizes, above zero.
        costs: The cost of each, above zero.

    Raises:
        ValueError: there are fewer than two different sizes, or a number is not above zero.
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    if spread == 0:
        raise ValueError("a power law needs two different sizes")
    exponent = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread
    start = middle_y - exponent * middle_x
    squares = [(y - start - exponent * x) ** 2 for x, y in zip(xs, ys, strict=True)]
    return PowerLaw(math.exp(start), exponent, math.sqrt(sum(squares) / len(squares)))
