"""How costs grow, on made-up rounds."""

from __future__ import annotations

import pytest

from nvlm_trt.bench.fit import fit_power_law
from nvlm_trt.bench.growth import growth_of
from nvlm_trt.bench.work import reference_work
from nvlm_trt.model.synthetic import tiny_spec

from .made_up import made_cases, made_round


def test_costs_grow_by_tokens_tiles_and_streams() -> None:
    rounds = [made_round(0.5).model_copy(update={"cases": made_cases()})] * 3
    tokens, tiles, streams = growth_of("mini", rounds)
    assert (tokens.unit, tokens.exponent, tokens.residual) == ("tokens", pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert (tiles.unit, tiles.exponent, tiles.factor) == ("tiles", pytest.approx(1), pytest.approx(0.2))
    assert streams.unit == "streams"
    assert 0 < streams.exponent < 1  # 2, 3 and 5 seconds of 1, 2 and 4
    assert streams.residual > 0
    assert [(point.size, point.seconds, point.n) for point in streams.points] == [(1, 2.0, 3), (2, 3.0, 3), (4, 5.0, 3)]


def test_beside_the_exponent_stands_that_of_the_arithmetic() -> None:
    work = reference_work(tiny_spec().config, "fp32")
    rounds = [made_round(0.5).model_copy(update={"cases": made_cases()})]
    tokens, tiles, streams = growth_of("mini", rounds, work)
    sizes = (256, 512, 1024)
    assert tokens.operations == pytest.approx(fit_power_law(sizes, [work.prefill_flops(n) for n in sizes]).exponent)
    assert tokens.operations > 1.01, "attention looks at all tokens before"
    assert tiles.operations == pytest.approx(1)
    assert streams.operations is None
    assert {each.operations for each in growth_of("mini", rounds)} == {None}


def test_two_sizes_are_too_few() -> None:
    few = tuple(case for case in made_cases() if case.size not in (1, 256))
    assert not list(growth_of("mini", [made_round(0.5).model_copy(update={"cases": few})]))
