"""The block manager never gives a block twice, loses none, and shares what was truly written."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nvlm_trt.decoder.kv_blocks import BlockManager

BLOCKS, SIZE = 12, 32


def keys_of(texts: str) -> list[bytes]:
    """Names of blocks whose contents are letters: as with true names, equal ones have all before in common."""
    return [texts[: end + 1].encode() for end in range(len(texts))]


class ManagedCache(RuleBasedStateMachine):
    """Any order of allocations, written blocks and frees, with a memory that knows what was written where."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(BLOCKS, SIZE)
        self.memory: dict[int, bytes] = {}
        self.texts: dict[str, str] = {}
        self.written: dict[str, int] = {}
        self.count = 0

    @rule(target=owners, text=st.text("ab", max_size=5), more=st.integers(1, SIZE * BLOCKS))
    def allocate(self, text: str, more: int) -> str:
        owner = f"request {self.count}"
        self.count += 1
        before = copy.deepcopy(self.manager)
        needed = self.manager.blocks_for(len(text) * SIZE + more)
        shared = self.manager.allocate(owner, len(text) * SIZE + more, keys_of(text))
        if shared is None:
            assert needed > before.num_free
            assert (before.num_free, before.num_published) == (self.manager.num_free, self.manager.num_published)
            return owner
        assert len(self.manager.blocks(owner)) == needed
        self.texts[owner], self.written[owner] = text, shared
        return owner

    @rule(owner=owners)
    def write_a_block(self, owner: str) -> None:
        if owner not in self.texts or self.written[owner] == len(self.texts[owner]):
            return
        place = self.written[owner]
        block = self.manager.blocks(owner)[place]
        assert sum(block in self.manager.blocks(other) for other in self.texts) == 1, "a shared block is written"
        self.memory[block] = keys_of(self.texts[owner])[place]
        self.written[owner] += 1
        self.manager.publish(owner, keys_of(self.texts[owner])[: place + 1])

    @rule(owner=owners)
    def share_what_others_wrote(self, owner: str) -> None:
        if owner in self.texts:
            self.written[owner] = self.manager.adopt(owner, keys_of(self.texts[owner]))

    @rule(owner=consumes(owners))
    def free(self, owner: str) -> None:
        self.manager.free(owner)
        self.texts.pop(owner, None)

    @invariant()
    def what_is_held_holds_what_was_written(self) -> None:
        for owner, text in self.texts.items():
            held = self.manager.blocks(owner)[: self.written[owner]]
            assert [self.memory[block] for block in held] == keys_of(text)[: self.written[owner]]

    @invariant()
    def no_block_is_held_twice_and_none_is_lost(self) -> None:
        held = [self.manager.blocks(owner) for owner in self.texts]
        assert all(len(set(blocks)) == len(blocks) for blocks in held)
        assert self.manager.num_free == BLOCKS - len({block for blocks in held for block in blocks})

    @invariant()
    def no_published_block_is_without_those_before_it(self) -> None:
        found = set()
        for text in {*self.memory.values()}:
            probe = copy.deepcopy(self.manager)
            names = keys_of(text.decode())
            shared = probe.allocate("probe", len(names) * SIZE, names)
            if shared is None:  # too few blocks to tell
                return
            found |= {*names[:shared]}
        assert len(found) == self.manager.num_published

    def teardown(self) -> None:
        for owner in self.texts:
            self.manager.free(owner)
        assert self.manager.num_free == BLOCKS
        assert self.manager.allocate("all", BLOCKS * SIZE) == 0
        assert self.manager.num_published == 0


TestManagedCache = ManagedCache.TestCase


def written(manager: BlockManager, owner: str, text: str) -> None:
    """Let a request come, write its blocks and go."""
    assert manager.allocate(owner, len(text) * SIZE, keys_of(text)) is not None
    manager.publish(owner, keys_of(text))
    manager.free(owner)


def test_blocks_of_a_request_that_went_are_shared_with_one_that_begins_alike():
    manager = BlockManager(6, SIZE)
    written(manager, "first", "abc")
    assert (manager.num_free, manager.num_published) == (6, 3)
    assert manager.allocate("second", 4 * SIZE, keys_of("abx")) == 2
    assert manager.num_free == 2


def test_shared_blocks_count_once():
    manager = BlockManager(4, SIZE)
    assert manager.allocate("first", 3 * SIZE) == 0
    manager.publish("first", keys_of("ab"))
    assert manager.allocate("other", 3 * SIZE) is None
    assert manager.allocate("second", 3 * SIZE, keys_of("ab")) == 2
    assert manager.num_free == 0


def test_what_was_let_go_of_longest_ago_goes_first_and_an_end_before_its_beginning():
    manager = BlockManager(4, SIZE)
    written(manager, "old", "ab")
    written(manager, "new", "cd")
    written(manager, "old again", "a")
    assert manager.allocate("large", 2 * SIZE) == 0
    assert manager.evictions == 2
    manager.free("large")
    assert manager.allocate("probe", SIZE, keys_of("ab")) == 1  # b went, being the oldest, then d
    assert manager.allocate("other", SIZE, keys_of("cd")) == 1


def test_a_free_block_is_taken_before_a_published_one():
    manager = BlockManager(3, SIZE)
    written(manager, "kept", "ab")
    assert manager.allocate("small", SIZE) == 0
    assert (manager.evictions, manager.num_published) == (0, 2)


def test_who_computed_what_is_there_already_takes_that_and_gives_its_own_back():
    manager = BlockManager(8, SIZE)
    for owner in ("first", "second"):
        manager.allocate(owner, 3 * SIZE)
        manager.publish(owner, keys_of("a"))
    assert manager.blocks("first")[0] == manager.blocks("second")[0]
    assert (manager.num_published, manager.num_free) == (1, 3)


def test_a_running_request_shares_what_was_published_since_it_came():
    manager = BlockManager(8, SIZE)
    manager.allocate("first", 3 * SIZE)
    manager.allocate("second", 3 * SIZE, keys_of("ab"))
    manager.publish("first", keys_of("ab"))
    assert manager.adopt("second", keys_of("ax")) == 1
    assert manager.adopt("second", keys_of("ab")) == 2
    assert manager.num_free == 4


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
