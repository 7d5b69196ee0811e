"""How an engine is doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How busy an engine is, and what its KV cache has spared. Counts of tokens and evictions only grow.

    Attributes:
        running: Requests in the batch.
        waiting: Requests in the queue.
        num_blocks: Blocks of the KV cache.
        free_blocks: Those that no request holds.
        cached_blocks: Those, held or free, whose contents requests to come can share.
        evicted_blocks: Those whose contents were given up for room.
        prompt_tokens: Tokens of the prompts that were admitted.
        reused_tokens: Those among them that the cache held already, so that they were not computed again.
    """

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    cached_blocks: int
    evicted_blocks: int
    prompt_tokens: int
    reused_tokens: int
