"""The gates of stage `verify`: which figure of which precision may be how large, and why.

A gate says when an engine is wrong, not when it is good: between two correct implementations of one precision the
figures differ by less. Nobody loosens a gate to pass; a figure beyond it is a defect or a new precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TIE: Final = 1e-3
"""Two logits of the reference closer than this count as equal: another order of summation may swap them."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The largest value that one figure may have.

    Attributes:
        figure: Name of the figure.
        limit: The largest value that passes.
        reason: Why it is where it is.
    """

    figure: str
    limit: float
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """One gate applied to a measured figure."""

    part: str
    gate: Gate
    value: float

    @property
    def ok(self) -> bool:
        """Whether the figure passes; NaN does not."""
        return self.value <= self.gate.limit


PROMPT_GATES: Final = (Gate("faults", 0, "tokenizer and template are exact or wrong"),)

SHARDED_GATES: Final = (
    Gate("max_rel_error", 1e-4, "float32 sums in another order differ by about 1e-6; a misplaced slice by about 1"),
)

VISION_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (Gate("max_rel_error", 1e-4, "float32 in another order of summation stays below 1e-5"),),
    "bf16": (
        Gate(
            "max_cosine_distance", 1e-3, "the worst token of a 24-layer encoder measures 1.3e-4 in bf16, also in torch"
        ),
    ),
}

DECODER_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (
        Gate("max_rel_error", 1e-4, "float32 in another order of summation stays below 1e-5"),
        Gate("tokens_differing", 0, f"greedy tokens are identical, ties below {TIE:g} aside"),
    ),
    "bf16": (Gate("max_cosine_distance", 2e-3, "bf16 logits of 24 layers measure 7e-5 on average, also in torch"),),
    "int8_wo": (Gate("max_cosine_distance", 5e-3, "8-bit weights measure 2e-4 to 4e-4; 4-bit weights measure 3e-2"),),
}

ANSWER_GATES: Final[Mapping[bool, tuple[Gate, ...]]] = {
    True: (
        Gate("tokens_differing", 0, f"the whole engine in fp32 answers as the reference, ties below {TIE:g} aside"),
    ),
    False: (),
}
"""By whether both parts are fp32: in other precisions one flipped near-tie changes all tokens after it."""


def judge(part: str, gates: tuple[Gate, ...], figures: Mapping[str, float]) -> list[Check]:
    """Apply gates to the figures of one part.

    Raises:
        KeyError: a gate's figure was not measured.
    """
    return [Check(part, gate, figures[gate.figure]) for gate in gates]
