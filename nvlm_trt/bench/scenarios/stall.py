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

SLACKS: Final = (2, 4, 8)
"""The streams run so many times longer than the long prompt takes alone, as beside them it takes longer; the next
factor is tried where that was too short."""


def stall(scene: Scene) -> Iterator[CaseRecord]:
    """Running streams, and a long prompt that comes when they have decoded a few tokens."""
    streams = min(STREAMS, scene.bounds.streams - 1)
    if streams < 1:
        raise LeftOut("one request at a time is all that can be decoded")
    alone = scene.ask(_long(scene)).ttft_s
    longest = min(scene.bounds.answer_tokens, scene.bounds.total_tokens - PROMPT_TOKENS)
    for _ in range(scene.repeats):
        pace, wait = _pace(scene, streams)
        lengths = [CALM_TOKENS + PROBE_TOKENS + math.ceil(slack * alone / pace) for slack in SLACKS]
        for answer in dict.fromkeys(min(length, longest) for length in lengths):
            running = [scene.text(PROMPT_TOKENS, answer) for _ in range(streams)]
            after = wait + CALM_TOKENS * pace
            case = scene.together("stall", "long prompt", [*running, _long(scene)], last_after=after)
            found = gaps(case)
            if found.calm and found.disturbed:
                yield case
                break
        else:
            few = "too few pieces of text came, or " if scene.bounds.served else ""
            raise LeftOut(f"{few}streams of {answer:,} tokens ended before the long prompt was read")


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
