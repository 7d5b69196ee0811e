"""The blocks of the KV cache: who holds which.

When it is admitted a request gets all the blocks that its prompt and its longest answer can fill, or it waits: a
request that runs is never evicted or cut short (TensorRT-LLM's `guaranteed_no_evict`).
"""

from __future__ import annotations

from collections import deque


class BlockManager:
    """Hands out cache blocks and takes them back. Not thread-safe: the engine's worker owns it.

    Args:
        num_blocks: Blocks in all.
        block_size: Tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a cache of {num_blocks} blocks of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._held: dict[str, tuple[int, ...]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that this many tokens fill."""
        return -(-tokens // self.block_size)

    def allocate(self, owner: str, tokens: int) -> tuple[int, ...] | None:
        """Blocks for `tokens` tokens, or None when too few are free (then nothing changes).

        Raises:
            ValueError: the owner holds blocks already, or asks for none.
        """
        if owner in self._held:
            raise ValueError(f"{owner} holds blocks already")
        if tokens < 1:
            raise ValueError(f"{owner} asks for room for {tokens} tokens")
        count = self.blocks_for(tokens)
        if count > len(self._free):
            return None
        blocks = tuple(self._free.popleft() for _ in range(count))
        self._held[owner] = blocks
        return blocks

    def free(self, owner: str) -> None:
        """Take the owner's blocks back; an owner that holds none is left alone."""
        self._free.extend(self._held.pop(owner, ()))
