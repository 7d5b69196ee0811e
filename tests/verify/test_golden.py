"""The figures of the comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nvlm_trt.verify.golden import Step, answer_figures, closeness, decoder_figures, with_excess, worst


def step(token: int, *logits: float) -> Step:
    return Step(token, np.array(logits, np.float32))


def test_closeness_of_equal_rows_is_zero_and_of_opposite_rows_is_two() -> None:
    rows = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    assert closeness(rows, rows)["max_rel_error"] == 0
    assert closeness(rows, rows)["max_cosine_distance"] == pytest.approx(0, abs=1e-12)
    assert closeness(-rows, rows)["max_cosine_distance"] == pytest.approx(2)
    assert closeness(-rows, rows)["max_rel_error"] == pytest.approx(2)


def test_relative_error_is_over_the_largest_magnitude() -> None:
    assert closeness(np.array([[1.0, 8.0]]), np.array([[2.0, 8.0]]))["max_rel_error"] == pytest.approx(1 / 8)


def test_the_worst_row_and_the_mean_are_told_apart() -> None:
    figures = closeness(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert figures["max_cosine_distance"] == pytest.approx(1)
    assert figures["mean_cosine_distance"] == pytest.approx(0.5)


def test_nan_never_looks_close() -> None:
    figures = closeness(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]]))
    assert all(np.isnan(value) for value in figures.values())


def test_several_prompts_give_the_largest_error_the_mean_of_means_and_the_sum_of_tokens() -> None:
    merged = worst(
        [
            {"max_rel_error": 1.0, "mean_cosine_distance": 2.0, "tokens": 3},
            {"max_rel_error": 4.0, "mean_cosine_distance": 4.0, "tokens": 5},
        ]
    )
    assert merged == {"max_rel_error": 4.0, "mean_cosine_distance": 3.0, "tokens": 8}


def test_excess_is_the_distance_over_that_of_torch_in_the_same_precision() -> None:
    engine, torch = [{"mean_cosine_distance": 0.03}], [{"mean_cosine_distance": 0.02}]
    assert with_excess(engine, torch)["excess"] == pytest.approx(1.5)
    assert "excess" not in with_excess(engine, [])
    assert with_excess(engine, [dict.fromkeys(torch[0], 0.0)])["excess"] == math.inf


def test_a_token_that_differs_at_a_tie_of_the_reference_does_not_count() -> None:
    reference = [step(0, 5.0, 4.9995, 0.0), step(0, 5.0, 4.0, 0.0), step(2, 0.0, 1.0, 3.0)]
    engine = [np.array([4.0, 5.0, 0.0]), np.array([4.0, 5.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    figures = decoder_figures(reference, [logits.astype(np.float32) for logits in engine])
    assert (figures["tokens"], figures["tokens_differing"], figures["tokens_tied"]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("answer", "differing"),
    [
        ([0, 1, 2], 0),
        ([0, 1], 1),  # it stopped early
        ([0, 1, 2, 2], 1),  # it went on
        ([2, 1, 2], 3),  # all tokens from a wrong one on are another answer
        ([0, 2, 0], 0),  # it parted at a tie: what follows cannot be compared
    ],
)
def test_a_free_answer_follows_the_reference_up_to_a_tie(answer: list[int], differing: int) -> None:
    reference = [step(0, 9.0, 0.0, 0.0), step(1, 0.0, 5.0, 4.9999), step(2, 0.0, 0.0, 9.0)]
    assert answer_figures(reference, answer)["tokens_differing"] == differing
