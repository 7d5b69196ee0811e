"""How many prompt tokens a step may read so that the streams beside it hardly notice.

What a step costs is learned from those that were run; of the machine only this is assumed: twice the tokens cost at
most twice the time. A step reads its weights once, whatever is computed with them meanwhile, so the first prompt tokens
are nearly free and the later ones are not: costs a token, learned from small chunks, would promise too much of large
ones. Pure bookkeeping: durations come from outside.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

PURE_REMEMBERED = 15
"""Steps without prompt tokens whose median is what one costs: a few slow ones among them do not count."""

MIXED_REMEMBERED = 5
"""Steps with prompt tokens that say how far one can go: few, because contexts grow."""

RECENT = 32
"""Steps without prompt tokens among which those that decode for as many requests are looked for."""

LOOK_EVERY = 32
"""Steps with prompt tokens between two looks at what one costs without: streams grow, come and go."""

TICK = 1e-9
"""The least seconds of a step, for clocks that do not see it."""


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """Prompt tokens that one step reads.

    Attributes:
        alone: At most, and when no request is decoding.
        least: At least, beside requests that decode: a prompt makes progress whatever it costs.
        stall: How many times as long as without prompt tokens a step beside decoding requests may take, with what it
            waited for others.
    """

    alone: int = 1024
    least: int = 8
    stall: float = 1.8


class StepCosts:
    """Learns what steps cost, and says how many prompt tokens the next one may read. Not thread-safe.

    Args:
        limits: Bounds of the answers.
    """

    def __init__(self, limits: ChunkLimits) -> None:
        self._limits = limits
        self._pure: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._mixed: deque[float] = deque(maxlen=MIXED_REMEMBERED)
        self._since_look = 0
        self._waited = 0.0

    def observe(self, decoding: int, prompt_tokens: int, seconds: float, waited: float = 0.0) -> None:
        """Learn from a step that was run.

        Args:
            decoding: Requests that brought one token.
            prompt_tokens: Tokens of prompts.
            seconds: How long it took.
            waited: Seconds before it, in which somebody else computed.
        """
        self._waited = waited
        if not decoding:
            return
        if prompt_tokens:
            self._mixed.append((decoding + prompt_tokens) / max(seconds, TICK))
            self._since_look += 1
        else:
            self._pure.append((_size(decoding), seconds))
            self._since_look = 0

    def budget(self, decoding: int) -> int:
        """Prompt tokens that the next step may read: from `least` to `alone`, or 0 to look at what it costs without.

        Args:
            decoding: Requests that bring one token to it.
        """
        limits = self._limits
        if not decoding:
            return limits.alone
        usual = self._usual(decoding)
        if usual is None or self._since_look >= LOOK_EVERY:
            return 0
        if not self._mixed:
            return limits.least
        tokens = median(self._mixed) * max(limits.stall * usual - self._waited, 0.0)
        return min(max(limits.least, int(tokens) - decoding), limits.alone)

    def _usual(self, decoding: int) -> float | None:
        """Seconds of a step with so many decoding requests and nothing else; None before one was seen."""
        size = _size(decoding)
        seen = [seconds for of, seconds in self._pure if of == size][-PURE_REMEMBERED:]
        return median(seen) if seen else None


def _size(decoding: int) -> int:
    """Numbers of requests that cost much the same have the same size."""
    return decoding.bit_length()
