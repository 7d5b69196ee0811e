"""Logits to a token, for one request.

The order is that of Hugging Face's logits processors and of TensorRT-LLM: repetition penalty, min_tokens, temperature,
top-k, top-p, then one draw. Ids at or above vocab_size (visual tokens) carry no penalty (TensorRT-LLM's
penaltyKernels.cu skips them). Each request draws from its own generator, once a token, so that its answer does not
depend on which requests share its steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.request import SamplingParams

TOP_P_FIRST_LOOK = 1024
"""Tokens sorted first for top-p; the whole vocabulary is sorted only when these hold too little probability."""

Floats = npt.NDArray[np.float32]
Candidates = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class Sampler:
    """Chooses the tokens of one request.

    Args:
        params: How.
        prompt_ids: int32 [tokens], visual tokens included.
        vocab_size: Logits of a step.
    """

    def __init__(self, params: SamplingParams, prompt_ids: npt.NDArray[np.int32], vocab_size: int) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._forbidden = np.array([index for index in params.stop_ids if 0 <= index < vocab_size], np.int64)
        self._seen = np.zeros(vocab_size, bool)
        self._seen[prompt_ids[prompt_ids < vocab_size]] = True
        self._count = 0

    def next_token(self, logits: Floats) -> int:
        """The next token.

        Args:
            logits: float32 [vocab_size], left as they are.
        """
        scores = self._penalised(logits)
        token = int(scores.argmax()) if self._params.greedy else self._draw(scores)
        self._seen[token] = True
        self._count += 1
        return token

    def _penalised(self, logits: Floats) -> Floats:
        penalty = self._params.repetition_penalty
        forbids = self._count < self._params.min_tokens and self._forbidden.size > 0
        if penalty == 1.0 and not forbids:
            return logits
        scores = logits.copy()
        if penalty != 1.0:
            seen = scores[self._seen]
            scores[self._seen] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
        if forbids:
            scores[self._forbidden] = -np.inf
        return scores

    def _draw(self, scores: Floats) -> int:
        params = self._params
        temperature = 1.0 if params.temperature is None else params.temperature
        tokens, probabilities = candidates(scores, temperature, params.top_k or 0, params.top_p or 0.0)
        edges = np.cumsum(probabilities)
        place = int(np.searchsorted(edges, self._random.random() * edges[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def log_prob(logits: Floats, token: int) -> float:
    """Natural logarithm of a token's probability, the softmax taken in float64.

    Args:
        logits: float32 [vocab_size].
        token: The token.
    """
    best = float(logits.max())
    return float(logits[token]) - best - float(np.log(np.exp(logits - best, dtype=np.float64).sum()))


def candidates(scores: Floats, temperature: float, top_k: int, top_p: float) -> Candidates:
    """The tokens that may be drawn and their probabilities.

    Args:
        scores: float32 [vocab_size].
        temperature: Above 0.
        top_k: Tokens to keep; 0 keeps all.
        top_p: Probability to keep, among those that top_k kept; 0 and 1 keep all.

    Returns:
        (ids, probabilities that sum to 1), both [kept]: best first (the lower id first among equals), or in the order
        of ids when everything is kept.
    """
    kept = _best(scores, top_k) if 0 < top_k < len(scores) else None
    ids = np.arange(len(scores)) if kept is None else kept
    chosen = scores[ids].astype(np.float64)
    weights = np.exp((chosen - chosen.max()) / temperature)
    probabilities = weights / weights.sum()
    if 0.0 < top_p < 1.0:
        return _nucleus(ids, probabilities, top_p)
    return ids, probabilities


def _best(scores: Floats | npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """The `count` best ids, best first. Scores equal to the last one's are kept by lower id."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: count - len(above)]
    chosen: npt.NDArray[np.int64] = np.concatenate((above, level))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _nucleus(ids: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], top_p: float) -> Candidates:
    """The smallest set of best tokens that holds at least `top_p`."""
    for look in (min(TOP_P_FIRST_LOOK, len(ids)), len(ids)):
        order = _best(probabilities, look)
        sums = np.cumsum(probabilities[order])
        enough = int(np.searchsorted(sums, top_p, side="left")) + 1
        if enough <= look:
            break
    order = order[:enough]
    chosen = probabilities[order]
    return ids[order], chosen / chosen.sum()
