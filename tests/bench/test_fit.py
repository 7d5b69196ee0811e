"""A power law through points."""

from __future__ import annotations

import math

import pytest

from nvlm_trt.bench.fit import fit_power_law


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_a_power_law_is_found_exactly(exponent: float) -> None:
    sizes = [1, 2, 8, 100]
    law = fit_power_law(sizes, [3 * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent)
    assert law.factor == pytest.approx(3)
    assert law.residual == pytest.approx(0, abs=1e-9)
    assert law(50) == pytest.approx(3 * 50**exponent)


def test_the_residual_is_the_relative_distance_from_the_line() -> None:
    off = math.log(1.1)
    law = fit_power_law([1, 1, 4, 4], [1.1, 1 / 1.1, 4.4, 4 / 1.1])
    assert law.exponent == pytest.approx(1)
    assert law.residual == pytest.approx(off)


@pytest.mark.parametrize(
    ("sizes", "costs", "message"),
    [([2, 2], [1, 3], "two different sizes"), ([0, 1], [1, 1], "math domain"), ([1, 2], [0, 1], "math domain")],
)
def test_what_has_no_power_law_is_refused(sizes: list[float], costs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(sizes, costs)
