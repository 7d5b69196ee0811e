"""The parts of the measurement of hops that need no server."""

from __future__ import annotations

import threading

import pytest


@pytest.fixture
def hops(load_script):
    return load_script("measure_hops")


def test_what_has_grown_is_divided_and_newcomers_are_left_out(hops):
    before, after = {"a": (1, 10.0)}, {"a": (3, 30.0), "b": (5, 5.0)}
    assert hops.grown(before, after, 2) == {"a": (1, 10.0)}


def test_a_new_image_is_another_each_time_and_a_known_one_the_same(hops):
    fresh, same = hops.pictures()
    assert fresh() != fresh()
    assert same() == same() != fresh()


def test_requests_of_a_scene_start_together_and_their_median_counts(hops):
    all_here = threading.Barrier(3, timeout=30)

    def ask(images, tokens):
        assert (images, tokens) == ([b"file"], 5)
        return float(all_here.wait() + 1)

    assert hops.together(ask, hops.Scene("x", lambda: [b"file"], 3), 5) == 2.0
