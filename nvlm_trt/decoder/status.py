"""How an engine is doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How busy an engine is, and what its KV cache has spared. Counts of tokens, steps and evictions only grow.

    Attributes:
        running: Requests in the batch.
        waiting: Requests in the queue.
        num_blocks: Blocks of the KV cache.
        free_blocks: Those that no request holds.
        cached_blocks: Those, held or free, whose contents requests to come can share.
        evicted_blocks: Those whose contents were given up for room.
        prompt_tokens: Tokens of the prompts that were admitted.
        reused_tokens: Those among them that the cache held already, so that they were not computed again.
        answer_tokens: Tokens of answers that were computed.
        steps: Steps that were run.
        step_seconds: Time that they took together.
    """

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    cached_blocks: int
    evicted_blocks: int
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
