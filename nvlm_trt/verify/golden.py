"""Figures that say how near an engine is to the torch reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.decoder.step import StepPart
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.verify.cases import Case
from nvlm_trt.verify.gates import TIE
from nvlm_trt.verify.measures import cosine_distances

if TYPE_CHECKING:
    from nvlm_trt.decoder.session_cpu import DecoderSession  # needs OpenVINO, which the image for GPUs has not

Floats = npt.NDArray[np.float32]

CHUNK_TOKENS = 512
"""Prompt tokens of one step: bounds the memory, and reads the cache back as serving does."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the reference's greedy answer: the token, and the float32 [vocab_size] logits it was taken from."""

    token: int
    logits: Floats


@dataclass(frozen=True, slots=True)
class Golden:
    """A case with the reference's own results: its prompt table [rows, hidden] (None for text) and greedy answer."""

    case: Case
    ids: npt.NDArray[np.int32]
    table: Floats | None
    steps: tuple[Step, ...]

    @property
    def answer(self) -> list[int]:
        """Its tokens, whatever comes after the stop id included."""
        return [step.token for step in self.steps]

    def said(self, stop_id: int) -> list[int]:
        """The answer up to its stop id, that one included."""
        tokens = self.answer
        return tokens[: tokens.index(stop_id) + 1] if stop_id in tokens else tokens


def make_goldens(
    reference: DecoderReference, cases: Sequence[Case], tables: Sequence[Floats | None], tokens: int
) -> list[Golden]:
    """What the reference answers to each case, in `tokens` tokens."""
    goldens = []
    for case, table in zip(cases, tables, strict=True):
        ids = case.prompt.decoder_ids(reference.config.vocab_size)
        steps = reference.greedy_steps(ids, table, max_tokens=tokens)
        goldens.append(Golden(case, ids, table, tuple(Step(token, logits.numpy()) for token, logits in steps)))
    return goldens


def closeness(engine: Floats, reference: Floats) -> dict[str, float]:
    """How near rows of an engine's output are to the reference's.

    Args:
        engine: [..., n].
        reference: The same shape.

    Returns:
        `max_rel_error`: largest difference over the largest magnitude of the reference;
        `max_cosine_distance`: the largest 1 - cosine of a row; `mean_cosine_distance`: its mean. NaN in, NaN out.
    """
    ours, theirs = (torch.from_numpy(np.ascontiguousarray(rows)).double() for rows in (engine, reference))
    theirs = theirs.reshape(ours.shape)
    distance = cosine_distances(ours, theirs)
    return {
        "max_rel_error": float((ours - theirs).abs().max() / theirs.abs().max()),
        "max_cosine_distance": float(distance.max()),
        "mean_cosine_distance": float(distance.mean()),
    }


def worst(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over several measurements: the mean of means, the sum of counts, the largest of everything else; NaN stays."""
    merged = {}
    for name in figures[0]:
        values = np.array([figure[name] for figure in figures])
        if name.startswith("mean_"):
            merged[name] = float(values.mean())
        elif name.startswith(("tokens", "prompts")):
            merged[name] = float(values.sum())
        else:
            merged[name] = float(values.max())
    return merged


def with_excess(figures: Sequence[dict[str, float]], yardsticks: Sequence[dict[str, float]]) -> dict[str, float]:
    """`worst` of an engine's figures; with yardsticks also `excess`, and their distance.

    Args:
        figures: The engine's, one a prompt.
        yardsticks: Those of torch in the same precision on the same prompts; empty for fp32.
    """
    merged = worst(figures)
    if yardsticks:
        distance = worst(yardsticks)["mean_cosine_distance"]
        merged["torch_mean_cosine_distance"] = distance
        merged["excess"] = merged["mean_cosine_distance"] / distance if distance else math.inf
    return merged


def reference_logits(
    reference: DecoderReference, ids: npt.NDArray[np.int32], table: Floats | None, answer: Sequence[int]
) -> Floats:
    """As `forced_logits`, by a torch reference: float32 [len(answer), vocab_size]."""
    forced = np.concatenate([ids, np.asarray(answer[:-1], np.int32)])
    logits: Floats = reference.logits(forced, table)[len(ids) - 1 :].numpy()
    return logits


def forced_logits(
    session: DecoderSession, ids: npt.NDArray[np.int32], table: Floats | None, answer: Sequence[int], block_size: int
) -> Iterator[Floats]:
    """Logits of the engine before each token of `answer`, each time after the tokens that the reference chose.

    Args:
        session: A compiled decoder whose cache holds the prompt and the answer.
        ids: int32 [t], visual ids from vocab_size up.
        table: float32 [rows, hidden], or None.
        answer: The reference's tokens; it is fed all but the last one.
        block_size: Tokens in a block of the cache.

    Yields:
        float32 [vocab_size], a copy, for each token of `answer`.
    """
    blocks = range(-(-(len(ids) + len(answer)) // block_size))
    parts = [ids[start : start + CHUNK_TOKENS] for start in range(0, len(ids), CHUNK_TOKENS)]
    parts += [np.array([token], np.int32) for token in answer[:-1]]
    past = 0
    for part in parts:
        wants_logits = past + len(part) >= len(ids)
        logits = session.run([StepPart(part, past, blocks, table, wants_logits)])
        past += len(part)
        if wants_logits:
            yield logits[0].copy()


def decoder_figures(reference: Sequence[Step], engine: Sequence[Floats]) -> dict[str, float]:
    """`closeness` of teacher-forced logits, and how many greedy tokens agree.

    Returns:
        Besides the figures of `closeness`: `tokens` compared, `tokens_differing` without ties, and `tokens_tied`, those
        that differ where the reference's own two logits are closer than the tie.
    """
    figures = closeness(np.stack(engine), np.stack([step.logits for step in reference]))
    differing = tied = 0
    for step, logits in zip(reference, engine, strict=True):
        choice = int(logits.argmax())
        if choice != step.token:
            margin = float(step.logits[step.token] - step.logits[choice])
            tied += margin < TIE
            differing += not margin < TIE
    return {**figures, "tokens": len(reference), "tokens_differing": differing, "tokens_tied": tied}


def answer_figures(reference: Sequence[Step], answer: Sequence[int]) -> dict[str, float]:
    """How far a freely generated answer follows the reference's.

    Returns:
        `tokens` of the reference; `tokens_differing`: 0 if both are equal, or part at a tie; else those from the first
        difference on.
    """
    same = next(
        (place for place, (step, token) in enumerate(zip(reference, answer, strict=False)) if step.token != token),
        min(len(reference), len(answer)),
    )
    left = max(len(reference), len(answer)) - same
    if left and same < min(len(reference), len(answer)):
        step = reference[same]
        if float(step.logits[step.token] - step.logits[answer[same]]) < TIE:
            left = 0
    return {"tokens": len(reference), "tokens_differing": left}
