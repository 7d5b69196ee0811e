"""Which tokens of which requests make up the next step.

Continuous batching as TensorRT-LLM's in-flight batching: requests join and leave between steps. A step holds one token
of every request that decodes and, in what is left of its budget, chunks of the prompts that are still being read, so a
long prompt never stalls running streams for longer than one chunk. Requests are admitted in the order of arrival; the
first that does not fit holds back those behind it, so none starves.

Pure bookkeeping: no threads, no OpenVINO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.request import DecodeRequest, EventSink, FinishReason, TokenEvent
from nvlm_trt.decoder.sampling import Sampler
from nvlm_trt.decoder.step import StepPart


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """Prompt tokens that one step reads at most.

    Attributes:
        alone: When no request is decoding.
        beside_decoding: When some are: the longest pause that a long prompt gives them.
    """

    alone: int = 512
    beside_decoding: int = 128


class Generation:
    """A request on its way through the engine.

    Args:
        request: The request, already checked.
        sink: Where its events go.
        vocab_size: Logits of a step.
    """

    def __init__(self, request: DecodeRequest, sink: EventSink, vocab_size: int) -> None:
        self.request = replace(request, prompt_table=None)
        self.sink = sink
        self.blocks: tuple[int, ...] = ()
        self.cancelled = False
        self._sampler = Sampler(request.sampling, request.input_ids, vocab_size)
        self._table = request.prompt_table
        self._past = 0
        self._answered = 0
        self._last: npt.NDArray[np.int32] = request.input_ids[:0]

    @property
    def max_tokens_in_cache(self) -> int:
        """Tokens that the cache must hold for it at most."""
        return len(self.request.input_ids) + self.request.sampling.max_tokens

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been read, so that a step brings its next token."""
        return self._past >= len(self.request.input_ids)

    def part(self, budget: int) -> StepPart:
        """Its part of the next step: the last token, or up to `budget` (1 or more) tokens of the prompt."""
        if self.decoding:
            return StepPart(self._last, self._past, self.blocks, None, wants_logits=True)
        prompt = self.request.input_ids
        chunk = prompt[self._past : self._past + budget]
        whole = self._past + len(chunk) == len(prompt)
        return StepPart(chunk, self._past, self.blocks, self._table, wants_logits=whole)

    def advance(self, part: StepPart, logits: npt.NDArray[np.float32] | None) -> TokenEvent | None:
        """Account for a step that was run.

        Args:
            part: Its part of the step.
            logits: float32 [vocab_size] where the part wanted them.

        Returns:
            The next event of the answer, or None while the prompt is being read.
        """
        self._past += len(part.input_ids)
        if logits is None:
            return None
        self._table = None  # every row has been read: give the memory back
        name, sampling = self.request.request_id, self.request.sampling
        if not np.isfinite(logits).all():
            return TokenEvent(name, None, "error", "the model answered with values that are not finite")
        token = self._sampler.next_token(logits)
        if token in sampling.stop_ids:
            return TokenEvent(name, None, "stop")
        self._answered += 1
        self._last = np.array([token], np.int32)
        reason: FinishReason | None = "length" if self._answered == sampling.max_tokens else None
        return TokenEvent(name, token, reason)


class Scheduler:
    """Admits, plans and releases generations. Not thread-safe: the engine's worker owns it.

    Args:
        blocks: The KV cache's blocks.
        max_batch_size: Generations that run at once at most.
        limits: Prompt tokens a step.
    """

    def __init__(self, blocks: BlockManager, max_batch_size: int, limits: ChunkLimits) -> None:
        self._blocks = blocks
        self._max_batch_size = max_batch_size
        self._limits = limits
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []

    @property
    def num_waiting(self) -> int:
        """Generations that wait for a place or for blocks."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Generations with a place in the batch."""
        return len(self._running)

    @property
    def generations(self) -> Sequence[Generation]:
        """All of them, running first."""
        return (*self._running, *self._waiting)

    def add(self, generation: Generation) -> None:
        """Queue a generation."""
        self._waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Forget a generation, running or waiting, and free its blocks."""
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        self._blocks.free(generation.request.request_id)

    def plan(self) -> list[tuple[Generation, StepPart]]:
        """Admit what fits, and say who brings what to the next step; empty when there is nothing to do."""
        self._admit()
        decoding = [generation for generation in self._running if generation.decoding]
        budget = self._limits.beside_decoding if decoding else self._limits.alone
        step = [(generation, generation.part(1)) for generation in decoding]
        for generation in self._running:
            if generation.decoding or budget < 1:
                continue
            part = generation.part(budget)
            budget -= len(part.input_ids)
            step.append((generation, part))
        return step

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            first = self._waiting[0]
            blocks = self._blocks.allocate(first.request.request_id, first.max_tokens_in_cache)
            if blocks is None:
                return
            first.blocks = blocks
            self._running.append(self._waiting.popleft())
