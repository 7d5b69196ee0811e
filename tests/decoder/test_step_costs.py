"""Steps beside decoding requests stay within their bound, on machines of every kind; no clock is looked at."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from nvlm_trt.decoder.step_costs import LOOK_EVERY, ChunkLimits, StepCosts

LIMITS = ChunkLimits(alone=512, least=8, stall=2.2)

Cost = Callable[[int, int], float]
"""Seconds of a step of so many decoding requests and so many prompt tokens."""


def linear(decoding: int, tokens: int) -> float:
    """A compute-bound machine."""
    return 0.020 + 0.001 * decoding + 0.001 * tokens


def roofline(decoding: int, tokens: int) -> float:
    """Weights are read once a step, whatever is computed with them meanwhile."""
    return max(0.020, 0.001 * (decoding + tokens)) + 0.002


def slow_prompts(decoding: int, tokens: int) -> float:
    """Even the least chunk is more than the bound allows."""
    return 0.010 + 0.010 * tokens


def free_prompts(decoding: int, tokens: int) -> float:
    return 0.020


def read_prompt(costs: StepCosts, cost: Cost, decoding: int, tokens: int) -> list[tuple[int, float]]:
    """Read a prompt beside decoding requests: the chunk and the seconds of each step."""
    steps = []
    while tokens:
        chunk = min(costs.budget(decoding), tokens)
        seconds = cost(decoding, chunk)
        costs.observe(decoding, chunk, seconds)
        steps.append((chunk, seconds))
        tokens -= chunk
    return steps


def decode(costs: StepCosts, cost: Cost, decoding: int, steps: int = 20) -> None:
    for _ in range(steps):
        costs.observe(decoding, 0, cost(decoding, 0))


@pytest.mark.parametrize("cost", [linear, roofline])
@pytest.mark.parametrize("decoding", [1, 3, 8, 31])
def test_no_step_takes_longer_than_the_bound_and_most_use_it(cost, decoding):
    costs = StepCosts(LIMITS)
    decode(costs, cost, decoding)
    steps = read_prompt(costs, cost, decoding, 1852)
    bound = LIMITS.stall * cost(decoding, 0)
    assert all(seconds <= bound for _, seconds in steps)
    full = [seconds for chunk, seconds in steps if chunk > LIMITS.least]
    assert sum(seconds > 0.8 * bound for seconds in full) > 0.6 * len(steps)


def test_prompts_alone_are_read_in_the_largest_chunks():
    assert StepCosts(LIMITS).budget(0) == 512


def test_a_prompt_makes_progress_where_even_the_least_is_too_much():
    costs = StepCosts(LIMITS)
    decode(costs, slow_prompts, 1)
    assert {chunk for chunk, _ in read_prompt(costs, slow_prompts, 1, 80)} == {8}


def test_where_prompt_tokens_cost_nothing_chunks_grow_to_the_largest():
    costs = StepCosts(LIMITS)
    decode(costs, free_prompts, 1)
    chunks = [chunk for chunk, _ in read_prompt(costs, free_prompts, 1, 4000)][:-1]
    assert chunks == sorted(chunks)
    assert (chunks[0], chunks[-1]) == (8, 512)


def test_what_a_step_costs_without_prompts_is_looked_at_first_and_again_while_prompts_keep_coming():
    costs = StepCosts(LIMITS)
    steps = read_prompt(costs, linear, 2, 2000)
    looks = [place for place, (chunk, _) in enumerate(steps) if chunk == 0]
    assert looks[0] == 0
    assert {later - earlier for earlier, later in itertools.pairwise(looks)} == {LOOK_EVERY + 1}


def test_more_streams_are_looked_at_before_they_are_burdened():
    costs = StepCosts(LIMITS)
    decode(costs, linear, 1)
    assert costs.budget(1) == 8
    assert costs.budget(8) == 0


def test_a_context_that_grows_makes_chunks_smaller():
    costs, read = StepCosts(LIMITS), 0
    decode(costs, linear, 1)
    late = []
    for _ in range(400):
        chunk = costs.budget(1)
        seconds = linear(1, 0) + chunk * (0.001 + read * 2e-7)
        costs.observe(1, chunk, seconds)
        read += chunk
        late.append((chunk, seconds))
    assert late[-1][0] < late[10][0]
    assert all(seconds <= 2.5 * linear(1, 0) for _, seconds in late)


def test_a_few_slow_steps_do_not_count():
    costs = StepCosts(LIMITS)
    decode(costs, linear, 4)
    read_prompt(costs, linear, 4, 500)
    usual = costs.budget(4)
    costs.observe(4, usual, 50 * linear(4, usual))
    assert costs.budget(4) == usual
    for _ in range(3):
        costs.observe(4, 0, 50 * linear(4, 0))
    assert costs.budget(4) == usual


@pytest.mark.parametrize("seed", range(20))
def test_steps_that_vary_by_five_percent_stay_within_two_and_a_half_times_the_usual(seed):
    noise = random.Random(seed)

    def noisy(decoding: int, tokens: int) -> float:
        return roofline(decoding, tokens) * noise.uniform(0.95, 1.05)

    costs = StepCosts(LIMITS)
    decode(costs, noisy, 2)
    assert max(seconds for _, seconds in read_prompt(costs, noisy, 2, 1852)) <= 2.5 * roofline(2, 0)
