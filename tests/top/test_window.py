"""Rates and quantiles of the last seconds, whatever happens to the server meanwhile."""

from __future__ import annotations

import math

import pytest

from nvlm_trt.top.window import Scrape, Window


def window(*pages: str, seconds: float = 100.0, step: float = 10.0) -> Window:
    made = Window(seconds)
    for place, text in enumerate(pages):
        made.add(Scrape.read(text, place * step))
    return made


def counter(value: float, **labels: str) -> str:
    inside = ",".join(f'{name}="{text}"' for name, text in labels.items())
    return f"# TYPE a_total counter\na_total{{{inside}}} {value}\n"


def histogram(*counts: int) -> str:
    edges = ["0.1", "0.2", "0.4", "+Inf"]
    lines = [f'a_bucket{{le="{edge}"}} {count}' for edge, count in zip(edges, counts, strict=True)]
    return "\n".join(["# TYPE a histogram", *lines, f"a_count {counts[-1]}", "a_sum 0"]) + "\n"


def test_a_counter_has_a_rate_from_two_pages_on() -> None:
    assert window(counter(5)).rate("a_total") is None
    assert window(counter(5), counter(25)).rate("a_total") == 2.0
    assert window(counter(5), counter(25)).rate("b_total") is None


def test_a_counter_that_begins_anew_lost_nothing_that_was_seen() -> None:
    """10 more before the restart, 4 after it."""
    assert window(counter(5), counter(15), counter(4)).rate("a_total") == pytest.approx(14 / 20)


def test_a_label_that_appears_later_began_at_nothing() -> None:
    seen = window(counter(5, why="x"), counter(5, why="x") + 'a_total{why="y"} 20\n').rate_by("a_total", "why")
    assert seen == {"y": 2.0}


def test_a_page_without_a_counter_does_not_make_its_past_a_growth() -> None:
    assert window(counter(1000), "", counter(1020)).rate("a_total") == 1.0
    assert window(counter(1000), "", counter(4)).rate("a_total") == pytest.approx(4 / 20), "it began anew"
    assert window("", counter(1000), counter(1020)).rate("a_total") == 1.0
    assert window(histogram(7, 7, 7, 7), "", histogram(7, 8, 8, 8)).quantile("a", 0.5) == pytest.approx(0.15)


def test_old_pages_are_forgotten_but_for_two() -> None:
    seen = window(*(counter(value) for value in (0, 100, 110, 120)), seconds=20.0)
    assert (seen.rate("a_total"), seen.seconds) == (1.0, 20.0)
    assert window(counter(0), counter(10), seconds=1.0).rate("a_total") == 1.0


def test_gauges_are_those_of_the_last_page() -> None:
    seen = window('g{p="a"} 1\n', 'g{p="a"} 2\ng{p="b"} 3\n')
    assert (seen.now("g"), seen.now("g", p="a"), seen.now("h")) == (5.0, 2.0, None)
    assert seen.now_by("g", "p") == {"a": 2.0, "b": 3.0}


def test_quantiles_are_of_what_came_meanwhile_and_lie_within_their_bucket() -> None:
    """Of 100 values, 50 up to 0.1, 40 up to 0.2, 10 up to 0.4, beside a thousand before."""
    seen = window(histogram(1000, 1000, 1000, 1000), histogram(1050, 1090, 1100, 1100))
    assert seen.quantile("a", 0.5) == pytest.approx(0.1)
    assert seen.quantile("a", 0.25) == pytest.approx(0.05)
    assert seen.quantile("a", 0.95) == pytest.approx(0.3)


def test_a_quantile_beyond_the_last_edge_is_that_edge_and_of_nothing_is_none() -> None:
    assert window(histogram(0, 0, 0, 0), histogram(0, 0, 0, 9)).quantile("a", 0.5) == 0.4
    assert window(histogram(7, 7, 7, 7), histogram(7, 7, 7, 7)).quantile("a", 0.5) is None
    assert window("", "").quantile("a", 0.5) is None


def test_a_share_is_of_what_came_meanwhile() -> None:
    page = "# TYPE h_total counter\nh_total {}\n# TYPE m_total counter\nm_total {}\n"
    seen = window(page.format(10, 0), page.format(13, 1))
    share = seen.ratio("h_total", "h_total", "m_total")
    assert share is not None
    assert math.isclose(share, 0.75)
    assert window(page.format(1, 1), page.format(1, 1)).ratio("h_total", "h_total", "m_total") is None
