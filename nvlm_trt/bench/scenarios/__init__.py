"""What is measured besides the load: each scenario asks for cases, from which metrics are worked out.

A scenario is a function from a scene to cases. Its formulas are those of its metrics (nvlm_trt/bench/metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from nvlm_trt.bench.record import CaseRecord, ScenarioName
from nvlm_trt.bench.scenarios.base import NAMES, Bounds, LeftOut, Scenario, Scene
from nvlm_trt.bench.scenarios.first import first
from nvlm_trt.bench.scenarios.reuse import repeat, turns
from nvlm_trt.bench.scenarios.scale import decode, prefill, streams, vision
from nvlm_trt.bench.scenarios.stall import stall
from nvlm_trt.errors import UserError

__all__ = ["NAMES", "Bounds", "Scene", "play"]

PREFILL_TOKENS: Final = (512, 2048)
VISION_TILES: Final = (1, 5, 7)
DECODE_STREAMS: Final = (1, 8)
FIRST_TOGETHER: Final = (1, 8)
STREAMS: Final = (1, 2, 4, 8, 16, 32)
GROWTH_TOKENS: Final = (256, 512, 1024, 2048, 4096)
GROWTH_TILES: Final = (1, 3, 5, 7)


def play(names: Collection[ScenarioName], scene: Scene, say: Callable[[str], None]) -> tuple[CaseRecord, ...]:
    """Measure the scenarios of those names, one after the other; reasons of what cannot be are left in the scene.

    Args:
        names: Which.
        scene: Whom to ask, and with what.
        say: Told the name of each when it begins.

    Raises:
        FaultError: whoever is asked failed.
    """
    cases: list[CaseRecord] = []
    for name, scenario in chosen(names):
        say(name)
        scene.begin(name)
        try:
            cases.extend(scenario(scene))
        except (LeftOut, UserError) as reason:  # that an engine has limits is no fault of its
            scene.leave_out(reason)
    return tuple(cases)


def chosen(names: Collection[ScenarioName]) -> Iterator[tuple[ScenarioName, Scenario]]:
    """The scenarios of those names. Growth has no cases of its own: it adds sizes to those of three others."""
    growth = "growth" in names
    if "repeat" in names:
        yield "repeat", repeat
    if "turns" in names:
        yield "turns", turns
    if "stall" in names:
        yield "stall", stall
    if "first" in names:
        yield "first", first(FIRST_TOGETHER)
    if "streams" in names or growth:
        yield "streams", streams(STREAMS)
    if "prefill" in names or growth:
        yield "prefill", prefill(_sizes("prefill" in names, PREFILL_TOKENS, growth, GROWTH_TOKENS))
    if "decode" in names:
        yield "decode", decode(DECODE_STREAMS)
    if "vision" in names or growth:
        yield "vision", vision(_sizes("vision" in names, VISION_TILES, growth, GROWTH_TILES))


def _sizes(first: bool, firsts: tuple[int, ...], second: bool, seconds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*(firsts if first else ()), *(seconds if second else ())}))
