"""When tokens came: rates and gaps of streams that run together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from nvlm_trt.bench.record import CaseRecord, RequestRecord

BURST: Final = 0.25
"""Of a stream's mean gap: below it, arrivals count as one, and those of several streams as of one step."""


class Gaps(NamedTuple):
    """Seconds between two tokens of one stream: before a long prompt came, and while it was read."""

    calm: list[float]
    disturbed: list[float]


def token_times(request: RequestRecord) -> Sequence[float]:
    """Seconds from the start of a request to each token of its answer.

    Where nobody noted every token, they are taken to be evenly spaced between the first one and the end.
    """
    count = request.output_tokens
    if len(request.arrivals_s) == count:
        return request.arrivals_s
    if count == 1:
        return (request.ttft_s,)
    step = (request.total_s - request.ttft_s) / (count - 1)
    return [request.ttft_s + step * number for number in range(count)]


def steady_rate(case: CaseRecord) -> float | None:
    """Tokens a second of all streams together, while all of them decode.

    That is from the moment when the last stream has its first token to the moment when the first one ends; None where
    there is no such moment. Tokens of one step may be noted one after the other, so those that come within a quarter of
    the shortest mean gap after either moment belong to its step.
    """
    times = [
        [started + each for each in token_times(request)]
        for started, request in zip(case.started_s, case.requests, strict=True)
        if request.output_tokens
    ]
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    slack = BURST * min(((each[-1] - each[0]) / (len(each) - 1) for each in times if len(each) > 1), default=0.0)
    tokens = sum(begin + slack < each <= end + slack for stream in times for each in stream)
    return tokens / (end - begin) if tokens else None


def gaps(case: CaseRecord) -> Gaps:
    """Gaps of running streams around a long prompt, which is the last request of the case.

    A stream that ended before the long prompt had its first token is left out: it did not see all of it. Arrivals that
    follow each other by less than a quarter of the stream's mean gap before the long prompt are one: a server passes
    several tokens on together.
    """
    came = case.started_s[-1]
    read = came + case.requests[-1].ttft_s
    found = Gaps([], [])
    for started, request in zip(case.started_s[:-1], case.requests[:-1], strict=True):
        times = [started + each for each in request.arrivals_s]
        before = sum(each <= came for each in times)
        if before < 2 or times[-1] <= read:
            continue
        for earlier, later in pairwise(_bursts(times, BURST * (times[before - 1] - times[0]) / (before - 1))):
            if later <= came:
                found.calm.append(later - earlier)
            elif earlier <= read:
                found.disturbed.append(later - earlier)
    return found


def _bursts(times: list[float], apart: float) -> list[float]:
    """The first of those times that follow each other by less than `apart` seconds."""
    return times[:1] + [later for earlier, later in pairwise(times) if later - earlier >= apart]
