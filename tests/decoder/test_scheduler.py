"""What goes into a step."""

from __future__ import annotations

import numpy as np

from nvlm_trt.decoder.generation import Generation
from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams
from nvlm_trt.decoder.scheduler import Scheduler

VOCAB = 10


def generation(name: str, length: int, max_tokens: int = 4) -> Generation:
    ids = np.arange(length, dtype=np.int32) % VOCAB
    return Generation(DecodeRequest(name, ids, None, SamplingParams(max_tokens)), lambda event: None, VOCAB)


class Chunks:
    """Fifty tokens of prompts a step, twenty beside decoding requests."""

    def budget(self, decoding: int) -> int:
        return 20 if decoding else 50


def scheduler(blocks: int = 100, batch: int = 4) -> Scheduler:
    return Scheduler(BlockManager(blocks, 32), batch, Chunks())


def turn(of: Scheduler) -> dict[str, tuple[int, int, bool]]:
    """Plan and account for one step: name to (past, tokens, wants logits). Every answer token is 3."""
    step = of.plan()
    for each, part in step:
        each.advance(part, np.eye(VOCAB, dtype=np.float32)[3] if part.wants_logits else None)
        of.wrote(each)
    return {each.request.request_id: (part.past, len(part.input_ids), part.wants_logits) for each, part in step}


def test_a_long_prompt_is_read_in_chunks_and_asks_for_logits_at_its_end():
    subject = scheduler()
    subject.add(generation("long", 120))
    assert [turn(subject) for _ in range(4)] == [
        {"long": (0, 50, False)},
        {"long": (50, 50, False)},
        {"long": (100, 20, True)},
        {"long": (120, 1, True)},
    ]


def test_decoding_goes_on_while_a_prompt_is_read_in_smaller_chunks():
    subject = scheduler()
    subject.add(generation("first", 5))
    assert turn(subject) == {"first": (0, 5, True)}
    subject.add(generation("second", 45))
    assert turn(subject) == {"first": (5, 1, True), "second": (0, 20, False)}
    assert turn(subject) == {"first": (6, 1, True), "second": (20, 20, False)}
    assert turn(subject) == {"first": (7, 1, True), "second": (40, 5, True)}


def test_prompts_share_the_budget_of_a_step_in_order_of_arrival():
    subject = scheduler()
    for name, length in (("a", 30), ("b", 30), ("c", 30)):
        subject.add(generation(name, length))
    assert turn(subject) == {"a": (0, 30, True), "b": (0, 20, False)}


def test_a_request_waits_until_all_its_blocks_are_free_and_is_not_overtaken():
    subject = scheduler(blocks=3)
    running, large, small = generation("running", 40), generation("large", 40), generation("small", 10)
    for each in (running, large, small):
        subject.add(each)
    assert list(turn(subject)) == ["running"]
    assert (subject.num_running, subject.num_waiting) == (1, 2)
    subject.remove(running)
    turn(subject)
    assert (subject.num_running, subject.num_waiting) == (2, 0)


def test_no_more_requests_run_than_the_batch_holds():
    subject = scheduler(batch=2)
    for name in "abc":
        subject.add(generation(name, 1))
    assert list(turn(subject)) == ["a", "b"]


def test_a_waiting_request_can_be_removed():
    subject = scheduler(batch=1)
    first, second = generation("a", 1), generation("b", 1)
    subject.add(first)
    subject.add(second)
    turn(subject)
    subject.remove(second)
    assert subject.generations == (first,)
