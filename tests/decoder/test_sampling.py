"""How tokens are chosen, against a direct computation of the same rules."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.decoder.sampling import Sampler, candidates, log_prob
from nvlm_trt.errors import RequestError

VOCAB = 50
NO_PROMPT = np.zeros(0, np.int32)


def logits_of(seed: int, size: int = VOCAB) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def direct(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities by sorting everything."""
    scores = logits.astype(np.float64) / temperature
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    order = order[:top_k] if top_k else order
    weights = {index: math.exp(scores[index] - scores[order[0]]) for index in order}
    total, kept, mass = sum(weights.values()), [], 0.0
    for index in order:
        kept.append(index)
        mass += weights[index] / total
        if 0 < top_p < 1 and mass >= top_p:
            break
    result = np.zeros(len(scores))
    for index in kept:
        result[index] = weights[index] / sum(weights[other] for other in kept)
    return result


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.01, 1),
)
@settings(max_examples=150, deadline=None)
def test_candidates_are_those_of_a_direct_computation(seed, temperature, top_k, top_p):
    logits = logits_of(seed)
    ids, probabilities = candidates(logits, temperature, top_k, top_p)
    dense = np.zeros(VOCAB)
    dense[ids] = probabilities
    np.testing.assert_allclose(dense, direct(logits, temperature, top_k, top_p), atol=1e-12)


def test_top_p_over_a_flat_vocabulary_looks_beyond_the_first_tokens():
    ids, probabilities = candidates(np.zeros(4096, np.float32), 1.0, 0, 0.5)
    assert list(ids) == list(range(2048))
    assert probabilities.sum() == pytest.approx(1)


def test_equal_scores_are_kept_by_lower_id():
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    assert candidates(logits, 1.0, 2, 0)[0].tolist() == [1, 2]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (5, 0.0), (0, 0.8), (10, 0.7)])
def test_drawn_tokens_follow_the_distribution(top_k: int, top_p: float):
    logits = logits_of(1)
    sampler = Sampler(SamplingParams(10**6, temperature=1.3, top_k=top_k, top_p=top_p, seed=5), NO_PROMPT, VOCAB)
    draws = 20_000
    counts = np.bincount([sampler.next_token(logits) for _ in range(draws)], minlength=VOCAB)
    expected = direct(logits, 1.3, top_k, top_p)
    assert not counts[expected == 0].any()
    deviation = np.sqrt(draws * expected * (1 - expected)) + 1
    assert (np.abs(counts - draws * expected) < 5 * deviation).all()


def test_a_seed_repeats_its_tokens_and_another_does_not():
    params = SamplingParams(100, temperature=1.0, seed=11)
    logits = [logits_of(step) for step in range(40)]

    def drawn(of: SamplingParams) -> list[int]:
        sampler = Sampler(of, NO_PROMPT, VOCAB)
        return [sampler.next_token(step) for step in logits]

    assert drawn(params) == drawn(params)
    assert drawn(params) != drawn(replace(params, seed=12))
    assert drawn(replace(params, seed=None)) != drawn(replace(params, seed=None))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1),
        SamplingParams(1, temperature=0.0),
        SamplingParams(1, temperature=2.0, top_k=1),
        SamplingParams(1, temperature=0.0, top_p=0.5, top_k=7),
        SamplingParams(1, top_k=0, top_p=0.0),
    ],
)
def test_greedy_takes_the_best_token(params: SamplingParams):
    assert params.greedy
    for seed in range(10):
        assert Sampler(params, NO_PROMPT, VOCAB).next_token(logits_of(seed)) == int(logits_of(seed).argmax())


@pytest.mark.parametrize("asked", [{"top_k": 7}, {"top_p": 0.9}])
def test_asking_for_top_k_or_top_p_alone_draws_at_temperature_one(asked: dict[str, float]):
    alone, spelt_out = SamplingParams(1, seed=1, **asked), SamplingParams(1, temperature=1.0, seed=1, **asked)
    assert not alone.greedy
    drawn = [Sampler(params, NO_PROMPT, VOCAB).next_token(logits_of(3)) for params in (alone, spelt_out)]
    assert drawn[0] == drawn[1]


def test_a_tiny_temperature_is_nearly_greedy():
    sampler = Sampler(SamplingParams(1, temperature=1e-300), NO_PROMPT, VOCAB)
    assert sampler.next_token(logits_of(0)) == int(logits_of(0).argmax())


def test_repetition_penalty_counts_the_prompt_and_the_answer_but_no_visual_token():
    logits = np.array([4.0, 3.0, -1.0, 2.5], np.float32)
    sampler = Sampler(SamplingParams(9, repetition_penalty=2.0), np.array([0, 5, 6], np.int32), 4)
    assert sampler.next_token(logits) == 1  # 0 is in the prompt: 4 / 2 < 3; 5 and 6 are rows of the table
    assert sampler.next_token(logits) == 3  # now 1 as well: 3 / 2 < 2.5
    assert sampler.next_token(logits) == 0  # 2, 1.5, -1, 1.25
    assert logits.tolist() == [4.0, 3.0, -1.0, 2.5]


def test_repetition_penalty_lowers_negative_scores():
    logits = np.array([-1.0, -1.5], np.float32)
    assert Sampler(SamplingParams(9, repetition_penalty=2.0), np.array([0], np.int32), 2).next_token(logits) == 1


def test_min_tokens_forbids_stop_ids_until_then():
    logits = np.array([1.0, 9.0, 2.0], np.float32)
    sampler = Sampler(SamplingParams(9, min_tokens=2, stop_ids=(1, 77)), NO_PROMPT, 3)
    assert [sampler.next_token(logits) for _ in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": float("nan")}, "temperature is out of range; seen: nan"),
        ({"temperature": -0.1}, "temperature is out of range"),
        ({"temperature": float("inf")}, "temperature is out of range"),
        ({"temperature": "hot"}, "temperature is not a number"),
        ({"temperature": True}, "temperature is not a number"),
        ({"temperature": 10**400}, "temperature is out of range"),
        ({"top_k": -1}, "top_k is out of range"),
        ({"top_k": 2.0}, "top_k is not a whole number"),
        ({"top_p": 1.01}, "top_p is out of range.*from 0 to 1"),
        ({"top_p": float("nan")}, "top_p is out of range"),
        ({"repetition_penalty": 0}, "repetition_penalty is out of range"),
        ({"repetition_penalty": None}, "repetition_penalty is not a number"),
        ({"max_tokens": 0}, "max_tokens is out of range"),
        ({"max_tokens": 1.5}, "max_tokens is not a whole number"),
        ({"min_tokens": 11}, "min_tokens is out of range.*from 0 to 10"),
        ({"seed": -1}, "seed is out of range"),
        ({"seed": 2**64}, "seed is out of range"),
        ({"stop_ids": [1]}, "stop_ids is not a list of int"),
        ({"stop_ids": (True,)}, "stop_ids is not a list of int"),
        ({"stop": ("a", 1)}, "stop is not a list of str"),
        ({"stop": ("",)}, "an empty text"),
        ({"stop": tuple("abcdefghijklmnopq")}, "17 texts"),
    ],
)
def test_a_field_out_of_range_is_named_with_what_was_seen(fields, words):
    with pytest.raises(RequestError, match=words):
        SamplingParams(**({"max_tokens": 10} | fields))


def test_a_log_probability_is_that_of_the_models_logits() -> None:
    logits = logits_of(5)
    exact = [value - math.log(math.fsum(math.exp(other) for other in logits.tolist())) for value in logits.tolist()]
    assert [log_prob(logits, token) for token in range(VOCAB)] == pytest.approx(exact, abs=1e-6)
    large = np.array([1e4, 1e4 - 1], np.float32)
    assert log_prob(large, 1) == pytest.approx(-1 - math.log1p(math.exp(-1)))
