"""Gates on what an engine says about images: its logits on prompts with images, and canaries.

A canary is a question asked three times after the same tokens: with its image, with the same image once more (the
control), and with another image of the same size in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.verify.measures import change, decided_positions, image_response, kl_divergences, parting, top1_agreement
from nvlm_trt.verify.subjects import Forced, Subject

Floats = npt.NDArray[np.float32]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Tables:
    """Prompt tables [rows, hidden] of one request: of its images, and of those that take their place."""

    right: Floats
    again: Floats
    swapped: Floats


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """A request with images.

    Attributes:
        ids: int32 [t], visual ids from vocab_size up.
        answer: The reference's greedy answer, at least one token.
        by_reference: The reference's tables.
        by_subject: Those of what is judged.
    """

    ids: npt.NDArray[np.int32]
    answer: Sequence[int]
    by_reference: Tables
    by_subject: Tables

    def forced(self, table: Floats) -> Forced:
        """With one of the tables, and the reference's answer behind it."""
        return Forced(self.ids, table, self.answer)


def judge_answers(
    subject: Subject, reference: Subject, questions: Sequence[ImageQuestion]
) -> tuple[dict[str, Figures], list[str]]:
    """Figures of the parts `logits` and `canary`, and remarks.

    Args:
        subject: What is judged.
        reference: The float32 reference.
        questions: At least one.
    """
    theirs = reference.logits([each.forced(table) for each in questions for table in _two(each.by_reference)])
    ours = subject.logits([each.forced(table) for each in questions for table in _three(each.by_subject)])
    right, swapped = theirs[::2], theirs[1::2]
    logits = logit_figures(torch.cat(ours[::3]), torch.cat(right))
    canaries = [Canary(*parts) for parts in zip(right, swapped, ours[::3], ours[1::3], ours[2::3], strict=True)]
    figures, remarks = canary_figures(canaries)
    return {"logits": logits, "canary": figures}, remarks


def _two(tables: Tables) -> tuple[Floats, Floats]:
    return tables.right, tables.swapped


def _three(tables: Tables) -> tuple[Floats, Floats, Floats]:
    return tables.right, tables.again, tables.swapped


def logit_figures(ours: torch.Tensor, theirs: torch.Tensor) -> Figures:
    """Figures of logits [positions, vocab_size] before each token of the reference's answers."""
    divergences = kl_divergences(ours, theirs)
    return {
        "positions": len(theirs),
        "decided": int(decided_positions(theirs).sum()),
        "mean_kl_divergence": float(divergences.mean()),
        "max_kl_divergence": float(divergences.max()),
        "top1_agreement": top1_agreement(ours, theirs),
        "argmax_agreement": float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
    }


@dataclass(frozen=True, slots=True)
class Canary:
    """Logits [positions, vocab_size] after the same tokens."""

    reference_right: torch.Tensor
    reference_swapped: torch.Tensor
    right: torch.Tensor
    again: torch.Tensor
    swapped: torch.Tensor

    @property
    def reference_change(self) -> float:
        """How much the swap matters to the reference; 0 is an image that says nothing to it."""
        return change(self.reference_right, self.reference_swapped)

    @property
    def response(self) -> float:
        """See `image_response`."""
        return image_response(self.right, self.swapped, self.reference_change)

    @property
    def control(self) -> float:
        """How much the same image again moves the logits, over how much another one does; 0 if not at all."""
        moved, by_swap = change(self.right, self.again), change(self.right, self.swapped)
        return moved / by_swap if by_swap else math.inf if moved else 0.0

    @property
    def parting(self) -> int | None:
        """Where the answer ought to change."""
        return parting(self.reference_right, self.reference_swapped)

    @property
    def unchanged(self) -> bool:
        """Whether the answer ought to change and does not."""
        place = self.parting
        return place is not None and bool(self.right[place].argmax() == self.swapped[place].argmax())


def canary_figures(canaries: Sequence[Canary]) -> tuple[Figures, list[str]]:
    """The lowest response, the largest control, the answers that did not change; and what to know of them.

    A reference that does not see the image at all asks nothing of an engine: its canaries are left out.
    """
    sound = [each for each in canaries if each.reference_change > 0]
    asked = sum(each.parting is not None for each in sound)
    figures: Figures = {
        "canaries": len(sound),
        "answers_asked": asked,
        "answers_unchanged": sum(each.unchanged for each in sound),
        "response": float(np.min([each.response for each in sound], initial=math.inf)) if sound else 1.0,
        "control": float(np.max([each.control for each in sound], initial=0.0)),
    }
    remarks = []
    if len(sound) < len(canaries):
        remarks.append(f"Of {len(canaries)} canaries {len(canaries) - len(sound)} say nothing to the reference either.")
    if not asked:
        remarks.append("No canary's answer had to change: the reference has no clear choice on these images.")
    return figures, remarks
