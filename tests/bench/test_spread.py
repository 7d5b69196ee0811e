"""Four numbers for many samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.bench.spread import mean_score, quartiles

SAMPLES = st.lists(st.floats(0, 1e6), min_size=2, max_size=30)


@given(SAMPLES)
def test_quartiles_are_those_of_numpy(samples: list[float]) -> None:
    spread = quartiles(samples)
    expected = np.percentile(samples, [25, 50, 75])
    assert np.allclose([spread.low, spread.value, spread.high], expected)
    assert (spread.n, spread.kind) == (len(samples), "quartiles")


def test_one_sample_is_its_own_range() -> None:
    spread = quartiles([3.5])
    assert (spread.low, spread.value, spread.high, spread.n) == (3.5, 3.5, 3.5, 1)


def test_a_share_has_its_wilson_interval() -> None:
    share = mean_score([1.0] * 8 + [0.0] * 2)
    assert share.value == pytest.approx(0.8)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # a textbook's 8 of 10
    assert (share.n, share.kind) == (10, "wilson95")


def test_all_right_answers_leave_a_doubt() -> None:
    share = mean_score([1.0] * 10)
    assert share.high == pytest.approx(1.0)
    assert share.low == pytest.approx(0.7225, abs=1e-4)


def test_scores_beyond_one_have_the_interval_of_a_mean() -> None:
    scores = [1.5, 0.5, 1.5, 0.5, 1.0]
    found = mean_score(scores)
    half = 1.96 * np.std(scores, ddof=1) / np.sqrt(5)
    assert (found.low, found.value, found.high) == pytest.approx((1 - half, 1, 1 + half), rel=1e-4)
    assert found.high > 1
    assert (found.n, found.kind) == (5, "normal95")


def test_one_score_beyond_one_is_its_own_range() -> None:
    found = mean_score([1.25])
    assert (found.low, found.value, found.high, found.kind) == (1.25, 1.25, 1.25, "normal95")
