"""The formulas of the gates, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nvlm_trt.verify.measures import (
    accuracy_drop,
    cosine_distances,
    decided_positions,
    image_response,
    kl_divergences,
    parting,
    top1_agreement,
)


def test_the_cosine_distance_of_a_row_is_its_own() -> None:
    ours = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    theirs = torch.tensor([[5.0, 0.0], [7.0, 0.0], [4.0, 3.0]])
    assert cosine_distances(ours, theirs).tolist() == pytest.approx([0, 1, 1 - 24 / 25])


def test_kl_is_the_sum_over_the_reference_distribution_in_nats() -> None:
    theirs, ours = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_divergences(ours + 3, theirs - 1).tolist() == pytest.approx([expected])  # a shift of logits says nothing
    assert kl_divergences(theirs, ours).tolist() != pytest.approx([expected])


def test_only_clear_choices_of_the_reference_count_as_agreement() -> None:
    theirs = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.5, 0.0], [0.0, 0.0, 9.0], [4.0, 0.0, 0.0]])
    assert decided_positions(theirs).tolist() == [True, False, True, True]
    ours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert top1_agreement(ours, theirs) == pytest.approx(2 / 3)
    assert top1_agreement(ours[1:2], theirs[1:2]) == 1.0
    ours[0, 1] = math.nan
    assert top1_agreement(ours, theirs) == pytest.approx(1 / 3)


def test_the_drop_of_a_task_is_in_points_and_one_of_a_hundred_samples_is_exactly_one() -> None:
    theirs = [1.0] * 95 + [0.0] * 5
    assert accuracy_drop([1.0] * 94 + [0.0] * 6, theirs) == 1.0
    assert accuracy_drop([1.0] * 93 + [0.0] * 7, theirs) > 1.0
    assert accuracy_drop([1.0] * 100, theirs) == -5.0


def test_the_response_to_an_image_is_a_ratio_of_changes() -> None:
    right, swapped = torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert image_response(right, swapped, 10.0) == pytest.approx(0.5)
    assert image_response(right, right, 10.0) == 0.0


@pytest.mark.parametrize(
    ("right", "swapped", "place"),
    [
        ([[5.0, 0.0], [5.0, 0.0]], [[5.0, 0.0], [0.0, 5.0]], 1),
        ([[5.0, 0.0], [5.0, 0.0]], [[5.0, 0.0], [5.0, 0.0]], None),
        ([[5.0, 0.0]], [[0.0, 0.5]], None),  # the other image leaves it open
        ([[0.5, 0.0], [9.0, 0.0]], [[0.0, 5.0], [0.0, 9.0]], None),  # what follows an unclear choice is no answer
    ],
)
def test_an_answer_ought_to_change_where_both_choices_are_clear(
    right: list[list[float]], swapped: list[list[float]], place: int | None
) -> None:
    assert parting(torch.tensor(right), torch.tensor(swapped)) == place
