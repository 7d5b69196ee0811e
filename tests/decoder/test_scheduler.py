"""What goes into a step."""

from __future__ import annotations

import weakref

import numpy as np

from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams, TokenEvent
from nvlm_trt.decoder.scheduler import ChunkLimits, Generation, Scheduler

VOCAB = 10


def generation(name: str, length: int, max_tokens: int = 4) -> Generation:
    ids = np.arange(length, dtype=np.int32) % VOCAB
    return Generation(DecodeRequest(name, ids, None, SamplingParams(max_tokens)), lambda event: None, VOCAB)


def scheduler(blocks: int = 100, batch: int = 4) -> Scheduler:
    return Scheduler(BlockManager(blocks, 32), batch, ChunkLimits(alone=50, beside_decoding=20))


def turn(of: Scheduler) -> dict[str, tuple[int, int, bool]]:
    """Plan and account for one step: name to (past, tokens, wants logits). Every answer token is 3."""
    step = of.plan()
    for each, part in step:
        each.advance(part, np.eye(VOCAB, dtype=np.float32)[3] if part.wants_logits else None)
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


def test_the_prompt_table_is_given_back_once_the_prompt_was_read():
    table = np.zeros((2, 4), np.float32)
    alive = weakref.ref(table)
    request = DecodeRequest("a", np.array([1, 10, 11], np.int32), table, SamplingParams(3))
    subject = Generation(request, lambda event: None, VOCAB)
    part = subject.part(8)
    assert part.table is table
    assert subject.advance(part, np.eye(VOCAB, dtype=np.float32)[3]) == TokenEvent("a", 3)
    del part, request, table
    assert alive() is None
    assert subject.part(8).table is None
    assert subject.part(8).input_ids.tolist() == [3]


def test_a_stop_id_ends_without_a_token_and_the_last_token_has_the_reason():
    one_hot = np.eye(VOCAB, dtype=np.float32)
    request = DecodeRequest("a", np.array([1], np.int32), None, SamplingParams(2, stop_ids=(7,)))
    stopped = Generation(request, lambda event: None, VOCAB)
    assert stopped.advance(stopped.part(1), one_hot[7]) == TokenEvent("a", None, "stop")
    full = Generation(request, lambda event: None, VOCAB)
    assert full.advance(full.part(1), one_hot[4]) == TokenEvent("a", 4)
    assert full.advance(full.part(1), one_hot[5]) == TokenEvent("a", 5, "length")


def test_logits_that_are_not_finite_are_an_error_of_that_request():
    subject = generation("a", 1)
    event = subject.advance(subject.part(1), np.full(VOCAB, np.nan, np.float32))
    assert event is not None
    assert event.finish_reason == "error"
    assert "not finite" in (event.error or "")
