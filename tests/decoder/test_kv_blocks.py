"""The block manager never gives a block twice and loses none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nvlm_trt.decoder.kv_blocks import BlockManager

BLOCKS, SIZE = 12, 32


class ManagedCache(RuleBasedStateMachine):
    """Any order of allocations and frees."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(BLOCKS, SIZE)
        self.held: dict[str, tuple[int, ...]] = {}
        self.count = 0

    @rule(target=owners, tokens=st.integers(1, SIZE * (BLOCKS + 2)))
    def allocate(self, tokens: int) -> str:
        owner = f"request {self.count}"
        self.count += 1
        free = self.manager.num_free
        blocks = self.manager.allocate(owner, tokens)
        needed = -(-tokens // SIZE)
        assert (blocks is None) == (needed > free)
        if blocks is not None:
            assert len(blocks) == needed
            self.held[owner] = blocks
        return owner

    @rule(owner=consumes(owners))
    def free(self, owner: str) -> None:
        self.manager.free(owner)
        self.held.pop(owner, None)

    @invariant()
    def no_block_is_held_twice_and_none_is_lost(self) -> None:
        blocks = [block for held in self.held.values() for block in held]
        assert len(blocks) == len(set(blocks))
        assert set(blocks) <= set(range(BLOCKS))
        assert self.manager.num_free == BLOCKS - len(blocks)


TestManagedCache = ManagedCache.TestCase


@given(st.integers(1, 10_000))
def test_blocks_for_is_the_least_that_holds_the_tokens(tokens: int):
    count = BlockManager(1, SIZE).blocks_for(tokens)
    assert (count - 1) * SIZE < tokens <= count * SIZE


def test_an_owner_allocates_once():
    manager = BlockManager(4, SIZE)
    manager.allocate("a", 1)
    with pytest.raises(ValueError, match="holds blocks already"):
        manager.allocate("a", 1)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="0 blocks"):
        BlockManager(0, SIZE)
    with pytest.raises(ValueError, match="room for 0 tokens"):
        BlockManager(1, SIZE).allocate("a", 0)
