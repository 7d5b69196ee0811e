"""The blocks of the KV cache: who holds which, and which hold a prefix that others can share.

When it is admitted a request gets all the blocks that its prompt and its longest answer can fill, or it waits: a
request that runs is never evicted or cut short (TensorRT-LLM's `guaranteed_no_evict`). Blocks that hold a prefix it
begins with are shared, and counted once.

A block that was written in full can be published under its name (`nvlm_trt.decoder.prefix`). When nobody holds it any
longer it keeps its contents until the room is needed; then those go first that were let go of longest ago, and a block
before the one that it continues. One block has a name: who writes what is there already takes that in place of its own.
So whoever holds a published block holds all that it continues, and none is left that could not be found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    """What a request holds: its blocks in order, of which the first `published` are published."""

    blocks: list[int]
    published: int = 0


@dataclass(slots=True)
class _Published:
    """The blocks that have names.

    Attributes:
        blocks: By name.
        names: Of each block.
        idle: Those that nobody holds, let go of longest ago first.
    """

    blocks: dict[bytes, int] = field(default_factory=dict)
    names: dict[int, bytes] = field(default_factory=dict)
    idle: dict[int, None] = field(default_factory=dict)


class BlockManager:
    """Hands out cache blocks and takes them back. Not thread-safe: the engine's worker owns it.

    Args:
        num_blocks: Blocks in all.
        block_size: Tokens in a block.

    Attributes:
        num_blocks: Blocks in all.
        block_size: Tokens in a block.
        evictions: Published blocks that were given up for room, so far.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a cache of {num_blocks} blocks of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.evictions = 0
        self._free = deque(range(num_blocks))
        self._held: dict[str, _Held] = {}
        self._holders = [0] * num_blocks
        self._published = _Published()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, those included that keep their contents while the room is not needed."""
        return len(self._free) + len(self._published.idle)

    @property
    def num_published(self) -> int:
        """Blocks that requests to come can share."""
        return len(self._published.blocks)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that this many tokens fill."""
        return -(-tokens // self.block_size)

    def blocks(self, owner: str) -> tuple[int, ...]:
        """The owner's blocks, in the order of its tokens."""
        return tuple(self._held[owner].blocks)

    def allocate(self, owner: str, tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """Give the owner blocks for `tokens` tokens, or None when too few are free (then nothing changes).

        Args:
            owner: Who; unknown so far.
            tokens: Prompt and longest answer.
            keys: Names of the full blocks that it begins with and need not write.

        Returns:
            How many of its blocks, the first ones, are shared: their tokens are in the cache.

        Raises:
            ValueError: the owner holds blocks already, or asks for none.
        """
        if owner in self._held:
            raise ValueError(f"{owner} holds blocks already")
        if tokens < 1:
            raise ValueError(f"{owner} asks for room for {tokens} tokens")
        shared = self._match(keys)
        fresh = self.blocks_for(tokens) - len(shared)
        if fresh > self.num_free - sum(block in self._published.idle for block in shared):
            return None
        for block in shared:
            self._hold(block)
        own = [self._take() for _ in range(fresh)]
        self._held[owner] = _Held(shared + own, published=len(shared))
        return len(shared)

    def adopt(self, owner: str, keys: Sequence[bytes]) -> int:
        """Share what was published since the owner got its blocks.

        Args:
            owner: Who; its own blocks of these names go back.
            keys: Names of the full blocks that it begins with and need not write.

        Returns:
            How many of its blocks, the first ones, hold their tokens for certain.
        """
        held = self._held[owner]
        for key in keys[held.published :]:
            block = self._published.blocks.get(key)
            if block is None:
                break
            self._exchange(held, block)
        return held.published

    def publish(self, owner: str, keys: Sequence[bytes]) -> None:
        """Let others share the owner's first ``len(keys)`` blocks, which are written in full.

        Args:
            owner: Who.
            keys: The blocks' names, all from the first on.
        """
        held, published = self._held[owner], self._published
        for key in keys[held.published :]:
            there = published.blocks.get(key)
            if there is not None:
                self._exchange(held, there)
                continue
            block = held.blocks[held.published]
            published.blocks[key], published.names[block] = block, key
            held.published += 1

    def free(self, owner: str) -> None:
        """Take the owner's blocks back; an owner that holds none is left alone."""
        held = self._held.pop(owner, None)
        for block in reversed(held.blocks if held else ()):  # so that the end of a prefix goes before its beginning
            self._let_go(block)

    def _match(self, keys: Sequence[bytes]) -> list[int]:
        """The published blocks of these names, up to the first that there is none of."""
        found = []
        for key in keys:
            block = self._published.blocks.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _exchange(self, held: _Held, block: int) -> None:
        """Put a published block in place of the owner's own next one."""
        self._hold(block)
        own, held.blocks[held.published] = held.blocks[held.published], block
        self._let_go(own)
        held.published += 1

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._published.idle.pop(block, None)

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._published.names:
            self._published.idle[block] = None
        else:
            self._free.appendleft(block)  # its memory is in use: take it again before untouched memory

    def _take(self) -> int:
        """A block of which nobody needs the contents."""
        if self._free:
            block = self._free.popleft()
        else:
            block = next(iter(self._published.idle))
            del self._published.idle[block]
            del self._published.blocks[self._published.names.pop(block)]
            self.evictions += 1
        self._holders[block] = 1
        return block
