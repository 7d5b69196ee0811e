"""The figures of the gates, one function each: formula, unit and source.

p is the reference, q what is judged; both are compared on the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the build reads the task's samples to see whether anything changed, and computes nothing then
    import torch

DECIDED: Final = 1.0
"""Nats by which the reference has to prefer its token over the second best for the choice to count as decided (a factor
of e). Closer ones fall otherwise by any rounding, and on weights without skill nearly all are close."""


def cosine_distances(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 - cosine of rows, 0 (same direction) to 2; no unit.

    Formula: 1 - <q, p> / (|q| |p|) for each row, in float64. Of visual tokens: how far the projector's output turned.
    Its largest value is the worst token: one bad tile or one saturated outlier, which a mean hides.
    Source: the usual figure for vision towers in other runtimes, e.g. TensorRT-LLM issue 3223 (0.14 in naive half
    precision, 0.9997 in a strongly typed network).

    Args:
        ours: [..., n].
        theirs: The same shape.

    Returns:
        float64 [...]; NaN for NaN and for a row of zeros.
    """
    from torch.linalg import vector_norm

    ours, theirs = ours.double(), theirs.double()
    norms = vector_norm(ours, dim=-1) * vector_norm(theirs, dim=-1)
    distances: torch.Tensor = 1 - (ours * theirs).sum(-1) / norms
    return distances.clamp(min=0)


def kl_divergences(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the next token's distribution from the reference's, in nats.

    Formula: sum over the vocabulary of p (log p - log q), p = softmax(logits), for each position, in float64.
    Source: llama.cpp's perplexity tool judges its quantisations by it (tools/perplexity, --kl-divergence); unlike
    perplexity it needs no right answer.

    Args:
        ours: Logits, [..., vocab_size].
        theirs: The same shape.

    Returns:
        float64 [...].
    """
    log_q, log_p = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def top1_agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of decided positions at which both choose the same token, 0 to 1; 1 where no position is decided.

    Formula: mean of [argmax q = argmax p] over the positions at which p's largest logit leads by DECIDED or more.
    Source: "same top token" of llama.cpp's perplexity tool; that only decided positions count is this project's rule.

    Args:
        ours: Logits, [positions, vocab_size].
        theirs: The same shape.
    """
    decided = decided_positions(theirs)
    same = (ours.argmax(-1) == theirs.argmax(-1)) & ours.isfinite().all(-1)
    return float(same[decided].double().mean()) if bool(decided.any()) else 1.0


def decided_positions(logits: torch.Tensor) -> torch.Tensor:
    """At which positions [positions, vocab_size] the largest logit leads by DECIDED or more: bool [positions]."""
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1] >= DECIDED


def accuracy_drop(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """What answering by q costs in the task's own score, in points of 100; negative where q is better.

    Formula: 100 (mean score of p - mean score of q) over the same samples.
    Source: the usual acceptance of quantised models, e.g. MLPerf Inference's 99% and 99.9% of the reference accuracy.

    Args:
        ours: Score of each sample, as nvlm_trt.eval.scoring gives it.
        theirs: The reference's, of the same samples.
    """
    drop = 100 * (sum(theirs) - sum(ours)) / len(theirs)
    return round(drop, 9)  # 1 of 100 samples is one point, not 1.0000000000000009


def image_response(right: torch.Tensor, swapped: torch.Tensor, by_reference: float) -> float:
    """How much an image matters to q, over how much it matters to p; 1 is as much, 0 is an image that is not seen.

    Formula: |q(swapped) - q(right)| / |p(swapped) - p(right)|, norms over the logits of all positions of an answer.
    Only sizes are compared: whether the change is the right one is what KL and top-1 agreement say. So weights without
    any skill pass as long as their image reaches the answer.
    Source: this project's canary.

    Args:
        right: Logits of q with the right image, [positions, vocab_size].
        swapped: The same with another one, after the same tokens.
        by_reference: The reference's `change`.
    """
    return change(right, swapped) / by_reference


def change(right: torch.Tensor, swapped: torch.Tensor) -> float:
    """The norm of a difference of logits [positions, vocab_size]."""
    return float((swapped.double() - right.double()).norm())


def parting(right: torch.Tensor, swapped: torch.Tensor) -> int | None:
    """The position at which the reference answers otherwise when its image is swapped, if both choices are decided.

    Formula: the first i with a = argmax p(right)[i] != b = argmax p(swapped)[i], if p(right)[i] prefers a over b and
    p(swapped)[i] prefers b over a, by DECIDED or more each; else None.

    Args:
        right: The reference's logits with the right image after the tokens that it answers, [positions, vocab_size].
        swapped: The same with the other image after the same tokens.
    """
    ours, others = right.argmax(-1), swapped.argmax(-1)
    differing = (ours != others).nonzero()
    if not len(differing):
        return None
    place = int(differing[0])
    a, b = int(ours[place]), int(others[place])
    leads = (right[place, a] - right[place, b], swapped[place, b] - swapped[place, a])
    return place if min(leads) >= DECIDED else None
