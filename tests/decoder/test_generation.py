"""One request on its way: what it brings to a step, and what becomes of the answer."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from nvlm_trt.decoder.generation import Generation
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams, TokenEvent

VOCAB = 10


def test_the_prompt_table_is_given_back_once_the_prompt_was_read():
    table = np.zeros((2, 4), np.float32)
    alive = weakref.ref(table)
    request = DecodeRequest("a", np.array([1, 10, 11], np.int32), table, SamplingParams(3))
    subject = Generation(request, lambda event: None, VOCAB)
    part = subject.part(8, [0])
    assert part.table is table
    assert subject.advance(part, np.eye(VOCAB, dtype=np.float32)[3]) == TokenEvent("a", 3)
    del part, request, table
    assert alive() is None
    assert subject.part(8, [0]).table is None
    assert subject.part(8, [0]).input_ids.tolist() == [3]


def test_a_stop_id_ends_without_a_token_and_the_last_token_has_the_reason():
    one_hot = np.eye(VOCAB, dtype=np.float32)
    request = DecodeRequest("a", np.array([1], np.int32), None, SamplingParams(2, stop_ids=(7,)))
    stopped = Generation(request, lambda event: None, VOCAB)
    assert stopped.advance(stopped.part(1, [0]), one_hot[7]) == TokenEvent("a", None, "stop")
    full = Generation(request, lambda event: None, VOCAB)
    assert full.advance(full.part(1, [0]), one_hot[4]) == TokenEvent("a", 4)
    assert full.advance(full.part(1, [0]), one_hot[5]) == TokenEvent("a", 5, "length")


def test_logits_that_are_not_finite_are_an_error_of_that_request():
    request = DecodeRequest("a", np.array([1], np.int32), None, SamplingParams(4))
    subject = Generation(request, lambda event: None, VOCAB)
    event = subject.advance(subject.part(1, [0]), np.full(VOCAB, np.nan, np.float32))
    assert event is not None
    assert event.finish_reason == "error"
    assert "not finite" in (event.error or "")


def test_a_token_comes_with_its_log_probability_where_that_is_asked_for_whatever_chose_it():
    request = DecodeRequest(
        "a", np.array([3], np.int32), None, SamplingParams(4, repetition_penalty=50.0, log_probs=True)
    )
    logits = np.where(np.arange(VOCAB) == 3, 5.0, np.where(np.arange(VOCAB) == 4, 4.0, 0.0)).astype(np.float32)
    subject = Generation(request, lambda event: None, VOCAB)
    event = subject.advance(subject.part(1, [0]), logits)
    assert event.token == 4
    assert event.log_prob == pytest.approx(4 - np.log(np.exp(logits.astype(np.float64)).sum()))
