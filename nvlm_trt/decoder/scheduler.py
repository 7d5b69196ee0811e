"""Which tokens of which requests make up the next step.

Continuous batching as TensorRT-LLM's in-flight batching: requests join and leave between steps. A step holds one token
of every request that decodes and, in what is left of its budget, chunks of the prompts that are still being read, so a
long prompt never stalls running streams for longer than one chunk. Requests are admitted in the order of arrival; the
first that does not fit holds back those behind it, so none starves.

What the cache holds already is not read again: a prompt goes on behind the blocks that it shares, also behind those
that another request has written since it was admitted.

Pure bookkeeping: no threads, no clock, no OpenVINO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from nvlm_trt.decoder.generation import Generation
from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.step import StepPart

Step = Sequence[tuple[Generation, StepPart]]
"""Who brings what to a step."""


class ChunkBudget(Protocol):
    """What says how many tokens of prompts a step may read: `nvlm_trt.decoder.step_costs.StepCosts`."""

    def budget(self, decoding: int) -> int:
        """Tokens of prompts beside so many decoding requests; 0 only beside some."""


class Scheduler:
    """Admits, plans and releases generations. Not thread-safe: the engine's worker owns it.

    Args:
        blocks: The KV cache's blocks.
        max_batch_size: Generations that run at once at most.
        chunks: Prompt tokens a step.

    Attributes:
        prompt_tokens: Tokens of the prompts that were admitted so far.
        reused_tokens: Those among them that the cache held already.
    """

    def __init__(self, blocks: BlockManager, max_batch_size: int, chunks: ChunkBudget) -> None:
        self.prompt_tokens = 0
        self.reused_tokens = 0
        self._blocks = blocks
        self._max_batch_size = max_batch_size
        self._chunks = chunks
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
        """Forget a generation, running or waiting, and let go of its blocks."""
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        self._blocks.free(generation.name)

    def plan(self) -> list[tuple[Generation, StepPart]]:
        """Admit what fits, and say who brings what to the next step; empty when there is nothing to do."""
        self._admit()
        decoding = [generation for generation in self._running if generation.decoding]
        budget = self._chunks.budget(len(decoding))
        step = [(generation, generation.part(1, self._blocks.blocks(generation.name))) for generation in decoding]
        writing: set[bytes] = set()
        for generation in self._running:
            if generation.decoding or budget < 1:
                continue
            ahead = self._skip_known(generation)
            if ahead and ahead[0] in writing:  # another request computes it in this step: share it in the next
                continue
            part = generation.part(budget, self._blocks.blocks(generation.name))
            writing.update(generation.keys(part.past + len(part.input_ids)))
            budget -= len(part.input_ids)
            step.append((generation, part))
        return step

    def wrote(self, generation: Generation) -> None:
        """Let others share the blocks that the generation has filled; call it when a step of it has succeeded."""
        self._blocks.publish(generation.name, generation.keys(generation.past))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            first = self._waiting[0]
            shared = self._blocks.allocate(first.name, first.max_tokens_in_cache, _sharable(first))
            if shared is None:
                return
            self.prompt_tokens += first.prompt_tokens
            self._found(first, shared)
            self._running.append(self._waiting.popleft())

    def _skip_known(self, generation: Generation) -> Sequence[bytes]:
        """Go on behind what the cache holds by now.

        Returns:
            Names of the blocks that are still to be written and could be shared, first block first.
        """
        keys = _sharable(generation)
        self._found(generation, self._blocks.adopt(generation.name, keys))
        return keys[generation.past // self._blocks.block_size :]

    def _found(self, generation: Generation, blocks: int) -> None:
        before = generation.past
        generation.found(blocks * self._blocks.block_size)
        self.reused_tokens += generation.past - before


def _sharable(generation: Generation) -> Sequence[bytes]:
    """Names of the prompt's blocks that it need not write: never that of its last token, whose logits are needed."""
    return generation.keys(generation.prompt_tokens - 1)
