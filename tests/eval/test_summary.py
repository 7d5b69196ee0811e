"""Means and intervals of a run."""

from __future__ import annotations

import pytest

from nvlm_trt.eval.records import Record
from nvlm_trt.eval.summary import interval, summarise, wilson


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),
        (0.9, 100, 0.8256, 0.9448),
        (0.0, 20, 0.0, 0.1611),
        (1.0, 20, 0.8389, 1.0),
        (0.42, 50, 0.2938, 0.5577),
    ],
)
def test_the_interval_is_wilsons(mean: float, count: int, low: float, high: float):
    """Expected values: scipy.stats.binomtest(k, n).proportion_ci(method="wilson")."""
    assert wilson(mean, count) == pytest.approx((low, high), abs=5e-5)


def record(name: str, score: float, category: str = "", error: str | None = None) -> Record:
    return Record(name, "key", category, "?", ("yes",), "text", score, output_tokens=2, seconds=0.25, error=error)


def test_means_are_over_all_samples_and_by_category():
    summary = summarise(
        [record("1", 1, "ocr"), record("2", 0, "ocr", "refused"), record("3", 1 / 3, "chart"), record("4", 1)]
    )
    assert summary.overall.mean == pytest.approx((1 + 1 / 3 + 1) / 4)
    assert (summary.overall.samples, summary.overall.failed) == (4, 1)
    assert [(score.name, score.samples, score.failed) for score in summary.categories] == [
        ("chart", 1, 0),
        ("ocr", 2, 1),
    ]
    assert summary.categories[1].mean == 0.5
    assert (summary.categories[1].low, summary.categories[1].high) == wilson(0.5, 2)
    assert (summary.output_tokens, summary.answer_seconds) == (8, 1.0)


def test_a_task_without_categories_has_none():
    assert summarise([record("1", 1)]).categories == ()


def test_the_interval_of_scores_above_one_is_normal_and_holds_the_mean():
    """By hand: mean 1.5, s = sqrt((0.25 + 0.25 + 2.25 + 2.25) / 3), half = 1.959964 s / 2."""
    overall = summarise([record("1", 1), record("2", 2), record("3", 0), record("4", 3)]).overall
    assert overall.mean == 1.5
    assert (overall.low, overall.high) == pytest.approx((0.234849, 2.765151), abs=1e-6)


def test_a_mean_below_one_with_a_score_above_one_has_the_normal_interval_too():
    assert interval([0, 0, 0, 2]) == pytest.approx((0.0, 0.5 + 1.959964 * 1 / 2), abs=1e-6)


def test_one_score_above_one_shows_no_spread():
    assert interval([2]) == (2, 2)
