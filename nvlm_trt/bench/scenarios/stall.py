"""Streams that run while a long prompt with an image arrives: do they stall?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from nvlm_trt.bench.arrivals import gaps, token_times
from nvlm_trt.bench.record import CaseRecord
from nvlm_trt.bench.scenarios.base import LABEL, LeftOut, Scene
from nvlm_trt.bench.workload import Question

LONG_TOKENS: Final = 1852
"""Of the long prompt: an image of 6 tiles and its thumbnail, 256 tokens each, with tags and template."""

STREAMS: Final = 8
PROMPT_TOKENS: Final = 64
CALM_TOKENS: Final = 16
"""Tokens of each stream before the long prompt comes."""

PROBE_TOKENS: Final = 16
"""Tokens of the answers by which pace and wait are found."""

SLACK: Final = 2.0
"""The streams run so many times longer than the long prompt takes alone: beside them it takes longer."""


def stall(scene: Scene) -> Iterator[CaseRecord]:
    """Running streams, and a long prompt that comes when they have decoded a few tokens."""
    streams = min(STREAMS, scene.bounds.streams - 1)
    if streams < 1:
        raise LeftOut("one request at a time is all that can be decoded")
    scene.ask(_long(scene))
    alone = scene.ask(_long(scene)).ttft_s
    for _ in range(scene.repeats):
        pace, wait = _pace(scene, streams)
        answer = CALM_TOKENS + math.ceil(SLACK * alone / pace) + PROBE_TOKENS
        answer = min(answer, scene.bounds.answer_tokens, scene.bounds.total_tokens - PROMPT_TOKENS)
        running = [scene.text(PROMPT_TOKENS, answer) for _ in range(streams)]
        case = scene.together("stall", "long prompt", [*running, _long(scene)], last_after=wait + CALM_TOKENS * pace)
        found = gaps(case)
        if found.calm and found.disturbed:
            yield case
        elif scene.bounds.served:
            raise LeftOut("too few pieces of text came, or the streams ended before the long prompt was read")
        else:
            raise LeftOut(f"streams of {answer:,} tokens ended before the long prompt was read")


def _pace(scene: Scene, streams: int) -> tuple[float, float]:
    """Seconds between two tokens of each stream, and until all have their first one."""
    probe = [scene.text(PROMPT_TOKENS, PROBE_TOKENS) for _ in range(streams)]
    case = scene.together("stall", "probe", probe)
    steps = [later - earlier for request in case.requests for earlier, later in pairwise(token_times(request))]
    pace = max(statistics.median(steps), 1e-4)  # of a server, whose pieces may come together
    return pace, max(started + each.ttft_s for started, each in zip(case.started_s, case.requests, strict=True))


def _long(scene: Scene) -> Question:
    """An image of as many tiles as are allowed, and text up to the length of the long prompt.

    Raises:
        LeftOut: it does not fit.
    """
    tiles = scene.bounds.most_tiles
    whole = min(LONG_TOKENS, scene.bounds.prompt_tokens, scene.bounds.total_tokens - 1)
    return scene.about(tiles, scene.digits(max(LABEL, whole - scene.image_tokens(tiles))))
