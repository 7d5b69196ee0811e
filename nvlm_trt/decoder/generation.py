"""One request on its way through the engine: what of it is in the cache, and what it brings to a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.prefix import PrefixKeys
from nvlm_trt.decoder.request import DecodeRequest, EventSink, FinishReason, TokenEvent
from nvlm_trt.decoder.sampling import Sampler, log_prob
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.decoder.step import StepPart


class Generation:
    """A request on its way through the engine.

    Args:
        request: The request, already checked.
        sink: Where its events go.
        vocab_size: Logits of a step.
        keys: Names of its blocks; None where no block is shared.
        stages: Where it is noted when the request reached what; None for a record of its own.

    Attributes:
        cancelled: Whether its caller gave it up.
        stages: When it reached what.
    """

    def __init__(
        self,
        request: DecodeRequest,
        sink: EventSink,
        vocab_size: int,
        keys: PrefixKeys | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.request = replace(request, prompt_table=None)
        self.sink = sink
        self.cancelled = False
        self.stages = stages or Stages(len(request.input_ids))
        self._keys = keys
        self._sampler = Sampler(request.sampling, request.input_ids, vocab_size)
        self._table = request.prompt_table
        self._past = 0
        self._answered = 0
        self._last: npt.NDArray[np.int32] = request.input_ids[:0]

    @property
    def name(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.input_ids)

    @property
    def past(self) -> int:
        """Its tokens that are in the cache."""
        return self._past

    @property
    def max_tokens_in_cache(self) -> int:
        """Tokens that the cache must hold for it at most."""
        return self.prompt_tokens + self.request.sampling.max_tokens

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been read, so that a step brings its next token."""
        return self._past >= self.prompt_tokens

    def keys(self, tokens: int) -> Sequence[bytes]:
        """Names of the blocks that its first `tokens` tokens fill, of those tokens that are known."""
        return [] if self._keys is None else self._keys.of(tokens)

    def found(self, tokens: int) -> None:
        """Account for tokens of the prompt that the cache holds already; the last one is always computed.

        Args:
            tokens: From the first on.
        """
        fresh = max(0, tokens - self._past)
        self.stages.reused_tokens += fresh
        self._past += fresh

    def part(self, budget: int, blocks: Sequence[int]) -> StepPart:
        """Its part of the next step: the last token, or up to `budget` (1 or more) tokens of the prompt.

        Args:
            budget: Tokens of the prompt at most.
            blocks: Its cache blocks.
        """
        if self.decoding:
            return StepPart(self._last, self._past, blocks, None, wants_logits=True)
        prompt = self.request.input_ids
        chunk = prompt[self._past : self._past + budget]
        whole = self._past + len(chunk) == len(prompt)
        return StepPart(chunk, self._past, blocks, self._table, wants_logits=whole)

    def advance(self, part: StepPart, logits: npt.NDArray[np.float32] | None) -> TokenEvent | None:
        """Account for a step that was run.

        Args:
            part: Its part of the step.
            logits: float32 [vocab_size] where the part wanted them.

        Returns:
            The next event of the answer, or None while the prompt is being read.
        """
        name, sampling = self.name, self.request.sampling
        if logits is not None and not np.isfinite(logits).all():
            return TokenEvent(name, None, "error", "the model answered with values that are not finite")
        if self.decoding and self._keys is not None:
            self._keys.push(int(self._last[0]))
        self._past += len(part.input_ids)
        if logits is None:
            return None
        self._table = None  # every row has been read: give the memory back
        token = self._sampler.next_token(logits)
        if token in sampling.stop_ids:
            return TokenEvent(name, None, "stop")
        self._answered += 1
        self._last = np.array([token], np.int32)
        reason: FinishReason | None = "length" if self._answered == sampling.max_tokens else None
        return TokenEvent(name, token, reason, log_prob=log_prob(logits, token) if sampling.log_probs else None)
