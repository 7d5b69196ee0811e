"""Any schedule of requests that begin alike reads from the cache exactly what each of them should.

The session is a model of the cache's memory: it knows what every position of every block holds, refuses to read
anything but the sequence's own prefix, and answers with tokens that hang on all that stands before them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvlm_trt.decoder.generation import Generation
from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.prefix import PrefixKeys
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams, TokenEvent
from nvlm_trt.decoder.scheduler import Scheduler
from nvlm_trt.decoder.step import StepPart

VOCAB, SIZE, BLOCKS, BATCH = 7, 4, 14, 4

Content = tuple[int | str, ...]


def state_after(content: Content) -> bytes:
    """What the cache holds at the last of these tokens: it hangs on all of them."""
    return hashlib.sha256(repr(content).encode()).digest()


def next_token(content: Content) -> int:
    return state_after(content)[0] % VOCAB


def answer_to(content: Content, max_tokens: int) -> list[int]:
    """The answer of a request that is alone in the world."""
    said: list[int] = []
    while len(said) < max_tokens:
        said.append(next_token((*content, *said)))
    return said


class Memory:
    """The cache, and what runs on it."""

    def __init__(self) -> None:
        self.cells = [[b"nothing"] * SIZE for _ in range(BLOCKS)]

    def run(self, content: Content, part: StepPart) -> None:
        """Read what stands before the part, and write it."""
        for place in range(part.past):
            assert self.cells[part.blocks[place // SIZE]][place % SIZE] == state_after(content[: place + 1])
        for place in range(part.past, part.past + len(part.input_ids)):
            self.cells[part.blocks[place // SIZE]][place % SIZE] = state_after(content[: place + 1])

    def spoil(self, part: StepPart) -> None:
        """A step that failed half-way."""
        for place in range(part.past, part.past + len(part.input_ids)):
            self.cells[part.blocks[place // SIZE]][place % SIZE] = b"garbage"


class Chunks:
    """The budget that the test chooses for each step."""

    size = 1

    def budget(self, decoding: int) -> int:
        return self.size if decoding else max(1, self.size)


class Engine(RuleBasedStateMachine):
    """Requests come, steps run or fail, requests are given up."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.chunks = Memory(), Chunks()
        self.blocks = BlockManager(BLOCKS, SIZE)
        self.scheduler = Scheduler(self.blocks, BATCH, self.chunks)
        self.contents: dict[str, Content] = {}
        self.answers: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.count = 0

    @rule(
        head=st.sampled_from([(), (1, 2, 3), (1, "red", "red", "red", 2), (1, "red", "red", "blue", 2)]),
        tail=st.sampled_from([("red",), (1, 2, "red"), (1, 2, 1), ("red",) * 5, (2,) * 9]),
        first_row=st.integers(0, 2),
        max_tokens=st.integers(1, 2 * SIZE),
    )
    def ask(self, head: Content, tail: Content, first_row: int, max_tokens: int) -> None:
        self._add((*head, *tail), first_row, max_tokens)

    @precondition(lambda self: any(self.answers.values()))
    @rule(data=st.data(), more=st.lists(st.sampled_from([3, "blue"]), min_size=1, max_size=SIZE))
    def ask_again_with_what_was_said(self, data: st.DataObject, more: list[int | str]) -> None:
        name = data.draw(st.sampled_from([name for name, said in self.answers.items() if said]))
        self._add((*self.contents[name], *self.answers[name], *more)[: 8 * SIZE], 0, 3)

    def _add(self, content: Content, first_row: int, max_tokens: int) -> None:
        ids, rows = [], [[0.0]] * first_row
        for token in content:
            ids.append(VOCAB + len(rows) if isinstance(token, str) else token)
            if isinstance(token, str):
                rows.append([float(len(token))])
        table = np.array(rows, np.float32) if rows else None
        request = DecodeRequest(f"r{self.count}", np.array(ids, np.int32), table, SamplingParams(max_tokens))
        self.count += 1
        keys = PrefixKeys(request.input_ids, table, VOCAB, SIZE)
        self.scheduler.add(Generation(request, lambda event: None, VOCAB, keys))
        self.contents[request.request_id], self.answers[request.request_id] = content, []
        self.computed[request.request_id] = 0

    @rule(chunk=st.integers(0, 3 * SIZE))
    def step(self, chunk: int) -> None:
        self.chunks.size = chunk
        for generation, part in self.scheduler.plan():
            name = generation.name
            whole = (*self.contents[name], *self.answers[name])
            self.memory.run(whole, part)
            self.computed[name] += len(part.input_ids)
            end = part.past + len(part.input_ids)
            logits = np.eye(VOCAB, dtype=np.float32)[next_token(whole[:end])] if part.wants_logits else None
            event = generation.advance(part, logits)
            self.scheduler.wrote(generation)
            if event is not None:
                self._take(generation, event)

    def _take(self, generation: Generation, event: TokenEvent) -> None:
        name = generation.name
        assert event.token is not None
        self.answers[name].append(event.token)
        limit = generation.request.sampling.max_tokens
        assert self.answers[name] == answer_to(self.contents[name], limit)[: len(self.answers[name])]
        if event.finish_reason is not None:
            assert len(self.answers[name]) == limit
            assert self.computed[name] >= limit, "the last token of a prompt is always computed"
            self.scheduler.remove(generation)

    @rule(chunk=st.integers(1, 3 * SIZE))
    def fail(self, chunk: int) -> None:
        self.chunks.size = chunk
        for generation, part in self.scheduler.plan():
            self.memory.spoil(part)
            self.scheduler.remove(generation)

    @precondition(lambda self: self.scheduler.generations)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.scheduler.generations)))

    @invariant()
    def held_blocks_are_those_of_running_requests(self) -> None:
        running = self.scheduler.generations[: self.scheduler.num_running]
        held = {block for generation in running for block in self.blocks.blocks(generation.name)}
        assert self.blocks.num_free == BLOCKS - len(held)

    @invariant()
    def the_counts_are_those_of_what_was_computed(self) -> None:
        assert 0 <= self.scheduler.reused_tokens <= self.scheduler.prompt_tokens

    def teardown(self) -> None:
        self.chunks.size = 3 * SIZE
        turns = 0
        while self.scheduler.generations:
            self.step(3 * SIZE)
            turns += 1
            assert turns < 1000, "a request starves"
        assert self.blocks.num_free == BLOCKS


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
