"""The gates of stage `verify`: which figure of which precision may be how large, and why.

In fp32 an engine has to reproduce the reference. In a reduced precision it cannot, and how far rounding moves the
result is a property of the model: the same bf16 arithmetic leaves a cosine distance of 1e-4 on one checkpoint and of
5e-3 on another. So such an engine is judged by its `excess`: its mean distance from the fp32 reference, over the
distance that torch has with weights and activations of the same precision on the same prompts. An engine with a defect
is many times further away.

What a precision may cost is a second matter: gates on the distance itself, on the answers (KL divergence, top-1
agreement, canary images, the score of a task) refuse a precision that the checkpoint does not bear. Their bounds are
the recipe's `gates`; the defaults here are by precision. Formulas and units: nvlm_trt/verify/measures.py.
A figure beyond its gate is a defect, or a precision that does not suit the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nvlm_trt.decoder.precision import QuantAlgo
from nvlm_trt.recipe import BuildRecipe, GateFields

TIE: Final = 1e-3
"""Two logits of the reference closer than this count as equal: another order of summation may swap them."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The largest value that one figure may have, or the smallest.

    Attributes:
        figure: Name of the figure.
        limit: The last value that passes.
        reason: Why it is where it is.
        at_least: Whether it is the smallest one.
    """

    figure: str
    limit: float
    reason: str
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One gate applied to a measured figure."""

    part: str
    gate: Gate
    value: float

    @property
    def ok(self) -> bool:
        """Whether the figure passes; NaN does not."""
        return self.value >= self.gate.limit if self.gate.at_least else self.value <= self.gate.limit

    @property
    def sign(self) -> str:
        """How the value stands to the limit, two characters."""
        if self.gate.at_least:
            return ">=" if self.ok else "< "
        return "<=" if self.ok else "> "


_EXCESS = Gate("excess", 2.0, "mean distance over that of torch in this precision")
_SUMMATION = Gate("max_rel_error", 1e-4, "float32 in another order of summation stays below 1e-5")
_SAME_TOKENS = Gate("tokens_differing", 0, f"greedy tokens are identical, ties below {TIE:g} aside")
_SAME_PROMPTS = Gate("prompts_differing", 0, "reading, tiling and template are exact or wrong")

PROMPT_GATES: Final = (Gate("faults", 0, "tokenizer and template are exact or wrong"),)

SHARDED_GATES: Final = (_SUMMATION,)

_MEAN, _WORST = "mean_cosine_distance", "max_cosine_distance"

VISION_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (_SUMMATION,),
    "bf16": (
        _EXCESS,
        Gate(_MEAN, 0.01, "a 24-layer encoder measures 9e-5"),
        Gate(_WORST, 0.05, "the worst of 224 tokens of a 24-layer encoder measures 2e-4"),
    ),
    "int8": (
        _EXCESS,
        Gate(_MEAN, 0.02, "a 24-layer encoder measures 6e-4"),
        Gate(_WORST, 0.05, "the worst of 224 tokens of a 24-layer encoder measures 1e-3"),
    ),
    "fp8": (
        _EXCESS,
        Gate(_MEAN, 0.03, "a 24-layer encoder measures 4e-3"),
        Gate(_WORST, 0.1, "the worst of 224 tokens of a 24-layer encoder measures 1e-2"),
    ),
}

EMULATED_VISION_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    precision: tuple(gate for gate in gates if gate is not _EXCESS) for precision, gates in VISION_GATES.items()
}
"""Of the gpu target, whose graph is not run: what is judged is the yardstick itself."""

_FOUR_BITS = Gate(_MEAN, 0.1, "4-bit weights that a checkpoint bears; random ones measure 0.3, unrelated logits 1")

DECODER_GATES: Final[Mapping[str, tuple[Gate, ...]]] = {
    "fp32": (_SUMMATION, _SAME_TOKENS),
    "bf16": (_EXCESS, Gate(_MEAN, 0.01, "a 24-layer decoder measures 7e-5 in bf16")),
    "int8_wo": (_EXCESS, Gate(_MEAN, 0.02, "24 layers measure 3e-4 with 8-bit weights, 3e-2 with 4")),
    "int8": (_EXCESS, Gate(_MEAN, 0.02, "as int8_wo; four random layers measure 7e-3")),
    "int4_wo": (_EXCESS, _FOUR_BITS),
}

ANSWER_GATES: Final[Mapping[bool, tuple[Gate, ...]]] = {True: (_SAME_PROMPTS, _SAME_TOKENS), False: (_SAME_PROMPTS,)}
"""By whether both parts are fp32: in other precisions one flipped near-tie changes all tokens after it."""

COPY_GATES: Final = (Gate("tensors_differing", 0, "norms, embedding and head are copies of the source's values"),)

LINEAR_GATES: Final[Mapping[QuantAlgo | None, tuple[Gate, ...]]] = {
    None: (Gate("linear_error", 1e-9, "the same values in float64: another order of summation stays below 1e-15"),),
    QuantAlgo.FP8: (Gate("linear_excess", 2.0, "sound ones measure 1.1; a quarter of an input's range 7, a row 24"),),
    QuantAlgo.SMOOTH_QUANT: (
        Gate("linear_excess", 3.0, "sound ones measure 1.2, after 500 tokens 2.4; half a range 3.4"),
    ),
    QuantAlgo.AWQ: (Gate("linear_excess", 2.0, "sound ones measure 1.3; shifted scales 2.4, halves of bytes 11"),),
    QuantAlgo.INT8_WEIGHTS: (Gate("linear_excess", 2.0, "sound ones measure 1.2; swapped columns 180"),),
    QuantAlgo.INT4_WEIGHTS: (Gate("linear_excess", 2.0, "sound ones measure 1.0; swapped weights 8"),),
}
"""Of every linear layer over all its ranks, each given the reference's inputs. Any defect of a checkpoint shows here.

SmoothQuant's scales fit what they were calibrated on: after one sample of 495 tokens the worst of 12 random layers, 256
wide, measures 2.4, after 1,074 tokens 1.8; of 4 layers, 512 wide, 1.2 after either. Its yardstick scales each input by
itself, so it cannot be much better. Defects of such a layer: inputs cut to half their range 3.4, factors of another
rank 6, twice the scale of one row 57.
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


BITS: Final[Mapping[str, int]] = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    **dict.fromkeys(("fp8", "int8", "int8_sq", "int8_wo"), 8),
    **dict.fromkeys(("int4_wo", "int4_awq"), 4),
}
"""Bits of a weight, by precision of vision or decoder. The part with fewer bits sets the bounds on answers."""

_KL, _TOP1 = "mean_kl_divergence", "top1_agreement"

LOGIT_GATES: Final[Mapping[int, tuple[Gate, ...]]] = {
    32: (Gate(_KL, 1e-6, "float32 in another order"), Gate(_TOP1, 1.0, "exact but for ties", at_least=True)),
    16: (Gate(_KL, 0.05, "random weights measure 0.015"), Gate(_TOP1, 0.98, "random weights: 1", at_least=True)),
    8: (
        Gate(_KL, 0.1, "random weights measure 0.03, nvlm-d-mini 0.001"),
        Gate(_TOP1, 0.97, "random weights: 1", at_least=True),
    ),
    4: (
        Gate(_KL, 0.3, "a third of a nat a token; nvlm-d-mini measures 0.003"),
        Gate(_TOP1, 0.9, "one clear choice in ten", at_least=True),
    ),
}
"""Of vision and decoder together, on prompts with images, by bits. Random weights bear 8 bits of weights, not of
activations, and not 4: they know nothing that could be kept."""

CANARY_GATES: Final = (
    Gate("response", 0.5, "1 is as much as the reference, 0 an image that never arrives", at_least=True),
    Gate("control", 0.05, "the same image again moves no logits, over a swapped one"),
    Gate("answers_unchanged", 0, "where the reference clearly answers otherwise, the engine has to"),
)

TASK_GATES: Final[Mapping[int, tuple[Gate, ...]]] = {
    bits: (Gate("accuracy_drop", points, "points of 100, by bits: 0 in fp32, 1 down to 8 bits, 2 in 4"),)
    for bits, points in ((32, 0.0), (16, 1.0), (8, 1.0), (4, 2.0))
}

_FIELDS: Final[Mapping[tuple[str, str], str]] = {
    ("vision", _MEAN): "projector_mean_distance",
    ("vision", _WORST): "projector_worst_distance",
    ("decoder", _MEAN): "logit_distance",
    ("ranks", _MEAN): "logit_distance",
    ("logits", _KL): "logit_kl",
    ("logits", _TOP1): "top1_agreement",
    ("canary", "response"): "canary_response",
    ("canary", "answers_unchanged"): "canary_unchanged",
    ("task", "accuracy_drop"): "task_accuracy_drop",
}
"""The recipe's field for the bound of a figure, by part and figure."""

_UNCHANGED: Final = ("canary", "answers_unchanged")
"""An answer that stays as it is may be what rounding costs. That images do not arrive (`response`) is no rounding."""


def answer_gates(recipe: BuildRecipe) -> dict[str, tuple[Gate, ...]]:
    """Gates on answers by part; the coarser of vision and decoder sets their defaults."""
    bits = min(BITS[recipe.vision_precision], BITS[recipe.decoder_precision])
    return {"logits": LOGIT_GATES[bits], "canary": CANARY_GATES, "task": TASK_GATES[bits]}


def judge_parts(
    gates: Mapping[str, tuple[Gate, ...]],
    figures: Mapping[str, Mapping[str, float]],
    fields: GateFields,
    *,
    without: Collection[str] = (),
) -> list[Check]:
    """Apply the gates of every part, with the bounds that the recipe sets.

    Args:
        gates: By part.
        figures: What was measured, by part.
        fields: The recipe's bounds.
        without: Parts that were not to be measured.

    Raises:
        KeyError: a part that was to be measured was not, or a gate's figure is missing among those of its part.
    """
    return [
        check
        for part, wanted in gates.items()
        if part not in without
        for check in judge(part, bounded(part, wanted, fields), figures[part])
    ]


def bounded(part: str, gates: tuple[Gate, ...], fields: GateFields) -> tuple[Gate, ...]:
    """The gates with the bounds that the recipe sets in place of the defaults."""
    return tuple(_bounded(gate, _FIELDS.get((part, gate.figure)), fields) for gate in gates)


def _bounded(gate: Gate, field: str | None, fields: GateFields) -> Gate:
    limit = None if field is None else getattr(fields, field)
    return gate if limit is None else replace(gate, limit=float(limit), reason=f"the recipe's gates.{field}")


def cost_ratio(checks: Sequence[Check]) -> float | None:
    """By what factor the cost of quantisation would have to fall; None where no gate on it failed.

    Returns:
        The smallest bound over figure of the failed ones of `failed_costs`; of a share that has to be large, what is
        missing to 1. 0 where a figure is no number.
    """
    return min((_ratio(check) for check in failed_costs(checks)), default=None)


def failed_costs(checks: Sequence[Check]) -> list[Check]:
    """The failed gates on what a precision costs: those whose bounds the recipe sets, canaries aside.

    None where a gate on defects failed too, or a canary's response or control: none of them is mended by quantising
    less.
    """
    failed = [check for check in checks if not check.ok and (check.part, check.gate.figure) != _UNCHANGED]
    costs = [check for check in failed if check.part != "canary" and (check.part, check.gate.figure) in _FIELDS]
    return costs if len(costs) == len(failed) else []


def _ratio(check: Check) -> float:
    limit, value = check.gate.limit, check.value
    if check.gate.at_least:
        limit, value = 1 - limit, 1 - value
    return limit / value if math.isfinite(value) else 0.0


def judge(part: str, gates: tuple[Gate, ...], figures: Mapping[str, float]) -> list[Check]:
    """Apply gates to the figures of one part.

    Raises:
        KeyError: a gate's figure was not measured.
    """
    return [Check(part, gate, figures[gate.figure]) for gate in gates]
