"""How near the logits of a sharded run are to a reference's, prompt by prompt and over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nvlm_trt.verify.measures import cosine_distances, kl_divergences


@dataclass(frozen=True, slots=True)
class PromptAgreement:
    """How near the logits of one prompt are to the reference's.

    Attributes:
        tokens: Positions compared.
        max_rel_error: Largest difference of a logit over the largest magnitude of a reference logit; infinite if a
            logit is not finite.
        argmax_agreement: Share of positions whose largest logit is the same one.
        mean_cosine_distance: Mean over the positions of 1 - cosine between the logits.
        mean_kl_divergence: Mean over the positions of the Kullback-Leibler divergence of the distribution of the next
            token from the reference's, in nats.
    """

    tokens: int
    max_rel_error: float
    argmax_agreement: float
    mean_cosine_distance: float
    mean_kl_divergence: float

    @classmethod
    def of(cls, logits: torch.Tensor, reference: torch.Tensor) -> PromptAgreement:
        """Compare the logits of one prompt, [t, vocab_size] both."""
        ours, theirs = logits.double(), reference.double()
        error = float((ours - theirs).abs().max()) if bool(ours.isfinite().all()) else math.inf
        return cls(
            tokens=len(theirs),
            max_rel_error=error / float(theirs.abs().max()),
            argmax_agreement=float((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).double().mean()),
            mean_cosine_distance=float(cosine_distances(ours, theirs).mean()),
            mean_kl_divergence=float(kl_divergences(ours, theirs).mean()),
        )


@dataclass(frozen=True, slots=True)
class ShardedReport:
    """The outcome of a sharded run.

    Attributes:
        tp: Ranks that shared each layer.
        pp: Pipeline stages.
        prompts: One comparison a prompt.
        yardsticks: The same for torch with unsharded weights rounded to the precision; empty if it isn't quantised.
    """

    tp: int
    pp: int
    prompts: tuple[PromptAgreement, ...]
    yardsticks: tuple[PromptAgreement, ...] = ()

    @property
    def max_rel_error(self) -> float:
        """Over all prompts."""
        return max(each.max_rel_error for each in self.prompts)

    @property
    def argmax_agreement(self) -> float:
        """The lowest of all prompts."""
        return min(each.argmax_agreement for each in self.prompts)

    @property
    def mean_cosine_distance(self) -> float:
        """The mean of all prompts."""
        return _mean([each.mean_cosine_distance for each in self.prompts])

    @property
    def mean_kl_divergence(self) -> float:
        """The mean of all prompts, in nats."""
        return _mean([each.mean_kl_divergence for each in self.prompts])

    def figures(self) -> dict[str, float]:
        """By name, for gates; with a yardstick also its distance and the `excess`, the distance over it."""
        figures = {
            "ranks": self.tp * self.pp,
            "max_rel_error": self.max_rel_error,
            "argmax_agreement": self.argmax_agreement,
            "mean_cosine_distance": self.mean_cosine_distance,
            "mean_kl_divergence": self.mean_kl_divergence,
        }
        if self.yardsticks:
            distance = _mean([each.mean_cosine_distance for each in self.yardsticks])
            figures["torch_mean_cosine_distance"] = distance
            figures["excess"] = self.mean_cosine_distance / distance if distance else math.inf
        return figures


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
