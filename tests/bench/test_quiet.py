"""How busy others are."""

from __future__ import annotations

import os

import pytest

from nvlm_trt.bench import quiet
from nvlm_trt.bench.quiet import ForeignLoad, busy_seconds, own_seconds


@pytest.mark.parametrize(("busy", "own", "cores"), [(30.0, 10.0, 2.0), (30.0, 30.0, 0.0), (10.0, 11.0, 0.0)])
def test_others_are_what_is_busy_and_not_our_own(
    busy: float, own: float, cores: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = {"busy_seconds": iter((100.0, 100.0 + busy)), "own_seconds": iter((5.0, 5.0 + own))}
    for name, values in clocks.items():
        monkeypatch.setattr(quiet, name, lambda values=values: next(values))
    wall = iter((7.0, 17.0))
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: next(wall))
    with ForeignLoad() as load:
        pass
    assert load.cores == pytest.approx(cores)


def test_our_own_time_is_that_of_the_kernel_and_part_of_all() -> None:
    times = os.times()
    assert own_seconds() >= times.user + times.system - 0.1
    assert busy_seconds() > own_seconds()
