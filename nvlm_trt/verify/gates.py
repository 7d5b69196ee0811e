"""The gates of stage `verify`: which figure of which precision may be how large, and why.

In fp32 an engine has to reproduce the reference. In a reduced precision it cannot, and how far rounding moves the
result is a property of the model: the same bf16 arithmetic leaves a cosine distance of 1e-4 on one checkpoint and of
5e-3 on another. So such an engine is judged by its `excess`: its mean distance from the fp32 reference, over the
distance that torch has with weights and activations of the same precision on the same prompts. An engine with a defect
is many times further away. A second gate on the distance itself refuses a precision that the checkpoint does not bear.
Nobody loosens a gate to pass: a figure beyond it is a defect, or a precision that does not suit the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nvlm_trt.decoder.precision import QuantAlgo

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


_EXCESS = Gate("excess", 2.0, "mean distance over that of torch in this precision")
_SUMMATION = Gate("max_rel_error", 1e-4, "float32 in another order of summation stays below 1e-5")
_SAME_TOKENS = Gate("tokens_differing", 0, f"greedy tokens are identical, ties below {TIE:g} aside")
_SAME_PROMPTS = Gate("prompts_differing", 0, "reading, tiling and template are exact or wrong")

PROMPT_GATES: Final = (Gate("faults", 0, "tokenizer and template are exact or wrong"),)

SHARDED_GATES: Final = (_SUMMATION,)

VISION_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (_SUMMATION,),
    "bf16": (_EXCESS, Gate("mean_cosine_distance", 0.01, "a 24-layer encoder measures 8e-5 in bf16")),
}

DECODER_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (_SUMMATION, _SAME_TOKENS),
    "bf16": (_EXCESS, Gate("mean_cosine_distance", 0.01, "a 24-layer decoder measures 7e-5 in bf16")),
    "int8_wo": (_EXCESS, Gate("mean_cosine_distance", 0.02, "24 layers measure 3e-4 with 8-bit weights, 3e-2 with 4")),
}

ANSWER_GATES: Final[Mapping[bool, tuple[Gate, ...]]] = {True: (_SAME_PROMPTS, _SAME_TOKENS), False: (_SAME_PROMPTS,)}
"""By whether both parts are fp32: in other precisions one flipped near-tie changes all tokens after it."""

COPY_GATES: Final = (Gate("tensors_differing", 0, "norms, embedding and head are copies of the source's values"),)

LINEAR_GATES: Final[Mapping[QuantAlgo | None, tuple[Gate, ...]]] = {
    None: (Gate("linear_error", 1e-9, "the same values in float64: another order of summation stays below 1e-15"),),
    QuantAlgo.FP8: (Gate("linear_excess", 2.0, "sound ones measure 1.1; a quarter of an input's range 7, a row 24"),),
    QuantAlgo.SMOOTH_QUANT: (Gate("linear_excess", 5.0, "sound ones measure 1.3, after 500 tokens 4.3; factors 13"),),
    QuantAlgo.AWQ: (Gate("linear_excess", 2.0, "sound ones measure 1.3; shifted scales 2.4, halves of bytes 11"),),
    QuantAlgo.INT8_WEIGHTS: (Gate("linear_excess", 2.0, "sound ones measure 1.2; swapped columns 180"),),
    QuantAlgo.INT4_WEIGHTS: (Gate("linear_excess", 2.0, "sound ones measure 1.0; swapped weights 8"),),
}
"""Of every linear layer over all its ranks, each given the reference's inputs. Any defect of a checkpoint shows here.

SmoothQuant's scales fit what they were calibrated on: after 500 tokens the worst layer measures 4.3, after 2,500 2.6,
after the project's own samples 1.3. Its yardstick scales each input by itself, so it cannot be much better.
"""

CACHE_GATES: Final = (Gate("cache_excess", 2.0, "a good scale measures 1.0; a quarter of it 15 in fp8, 40 in int8"),)

RANKS_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "bf16": (_SUMMATION,),
    "fp16": (_SUMMATION,),
    "fp8": (_EXCESS, Gate("mean_cosine_distance", 0.5, "24 narrow random layers measure 0.28, unrelated logits 1")),
    "int8_sq": (_EXCESS, Gate("mean_cosine_distance", 0.3, "24 narrow random layers measure 0.16, unrelated logits 1")),
    "int8_wo": (_EXCESS, Gate("mean_cosine_distance", 0.1, "24 narrow random layers measure 0.04, unrelated logits 1")),
    "int4_wo": (_EXCESS, Gate("mean_cosine_distance", 0.7, "24 narrow random layers measure 0.44, unrelated logits 1")),
    "int4_awq": (
        _EXCESS,
        Gate("mean_cosine_distance", 0.7, "24 narrow random layers measure 0.48, unrelated logits 1"),
    ),
}
"""Logits of all ranks in torch, by decoder precision of the gpu target.

They show what layers by themselves don't: heads, positions, residuals, stages, embedding and head put together. Random
weights bear few bits worse than trained ones, so the limits on the distance are wide.
"""

QUANTISED_CACHE_GATES: Final = (
    _EXCESS,
    Gate("mean_cosine_distance", 0.3, "24 narrow random layers measure 0.14 with an fp8 cache, unrelated logits 1"),
)
"""In place of those for bf16 and fp16 where the KV cache alone is quantised."""


def judge(part: str, gates: tuple[Gate, ...], figures: Mapping[str, float]) -> list[Check]:
    """Apply gates to the figures of one part.

    Raises:
        KeyError: a gate's figure was not measured.
    """
    return [Check(part, gate, figures[gate.figure]) for gate in gates]
