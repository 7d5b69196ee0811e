"""Every metric on answers whose score the released evaluation's code gives."""

from __future__ import annotations

from typing import get_args

import pytest

from nvlm_trt.eval.scoring import SCORERS, score
from nvlm_trt.eval.tasks import Metric, Sample


def scored(metric: Metric, answer: str, *right: str, choices: tuple[str, ...] = ()) -> float:
    return score(Sample("1", (), "?", (), right, metric, choices), answer)


def test_every_metric_that_a_task_may_name_has_a_scorer():
    assert set(SCORERS) == set(get_args(Metric))


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        (" Stop\n", ("stop",), 1),
        ("STRASSE", ("straße",), 1),
        ("b", ("a", "B"), 1),
        ("the stop", ("stop",), 0),
        ("stop.", ("stop",), 0),
        ("2", ("two",), 0),
        ("", ("stop",), 0),
    ],
)
def test_exact_is_strict(answer: str, right: tuple[str, ...], expected: float):
    assert scored("exact", answer, *right) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [("B", "B", 1), ("b.", "B", 1), ("(B)", "B", 1), ("B. blue", "B", 0), ("The two", "2", 1)],
)
def test_exact_match_compares_normalised_answers(answer: str, right: str, expected: float):
    assert scored("exact_match", answer, right) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (9, 1.0)])
def test_vqa_accuracy_is_a_third_for_each_person_who_agrees(matches: int, expected: float):
    right = ["The bus"] * matches + ["car"] * (10 - matches)
    assert scored("vqa_accuracy", "bus", *right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("50%", "50", 1),
        ("0.5", "50%", 0),
        ("-100", "100", 1),
        ("1,000", "1000", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("Yes", "yes", 1),
        ("about 100", "100", 0),
        ("", "100", 0),
    ],
)
def test_relaxed_accuracy_allows_numbers_five_percent(answer: str, right: str, expected: float):
    assert scored("relaxed_accuracy", answer, right) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("ITC Limited", ("itc limited",), 1.0),
        ("itc limted", ("ITC Limited",), 1 - 1 / 11),
        ("abcd", ("abxy",), 0.0),
        ("abcde", ("abcxy",), 0.6),
        ("1954", ("page 3", "1955"), 0.75),
        ("the page", ("page",), 1.0),
        ("", ("page",), 0.0),
        ("ß", ("ßa",), 1 - 1 / 3),
    ],
)
def test_anls_is_one_less_the_distance_below_the_threshold(answer: str, right: tuple[str, ...], expected: float):
    assert scored("anls", answer, *right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("The text says CENTRE.", ("centre",), 1),
        ("The text says\ncentre", ("says centre",), 1),
        ("cent", ("centre",), 0),
        ("total 12.50 EUR", ("12.50", "EUR 12.50", "total"), 2),
    ],
)
def test_substring_counts_every_right_answer_that_is_contained(answer: str, right: tuple[str, ...], expected: float):
    assert scored("substring", answer, *right) == expected


def test_substring_of_a_formula_keeps_the_case_and_leaves_spaces_out():
    assert scored("substring_formula", r"it is \frac { A } { b }", r"\frac{A}{b}") == 1
    assert scored("substring_formula", r"\frac{a}{b}", r"\frac{A}{b}") == 0
    assert scored("substring", r"\frac { A } { b }", r"\frac{A}{b}") == 0


CHOICES = ("red", "blue", "two cats", "green")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B) blue", "B"),
        ("Not A) but (C)", "C"),
        ("B.", "B"),
        ("A or rather B ", "B"),
        ("I think that it shows two cats here", "C"),
        ("it is first red and then later green", "D"),
        ("green", "A"),
        ("I do not know", "A"),
        ("", "A"),
        ("B,blue", "A"),
        (r"First (A). So \boxed{D}", "D"),
        (r"\answer{C} \boxed{D}", "C"),
        ("Answer:B", "B"),
    ],
)
def test_multiple_choice_finds_the_letter_or_takes_the_first(answer: str, letter: str):
    assert {right: scored("multiple_choice", answer, right, choices=CHOICES) for right in "ABCD"} == {
        right: float(right == letter) for right in "ABCD"
    }


def test_one_of_several_right_letters_is_enough():
    assert scored("multiple_choice", "(D)", "B", "D", choices=CHOICES) == 1


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("The answer is 3.14159", ("3.14",), 1),
        ("so x = 1,250 in total", ("1250",), 1),
        ("2.5e-3", ("0.0025",), 1),
        ("Therefore the final result is a sodium ion.", ("sodium",), 1),
        ("It is calcium, not sodium.", ("potassium",), 0),
        ("The value is 7", ("17",), 0),
        ("x", ("x",), 1),
        ("axe", ("x",), 0),
        ("the result is x or y", ("x",), 1),
        ("24/7", ("24/7", "3.43"), 1),
        ("first 5\nso it is 6", ("5",), 0),
        ("", ("5",), 0),
    ],
)
def test_an_open_answer_is_right_by_number_or_phrase(answer: str, right: tuple[str, ...], expected: float):
    assert scored("open_answer", answer, *right) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("3.149", "3.14", 1),
        ("3.00", "3", 1),
        ("3.", "3", 1),
        ("45%", "45", 1),
        ("The answer is 12.", "12", 1),
        ("The answer is 3.149", "3.14", 0),
        ("The answer is A", "A", 0),
        ("Yes", "yes", 1),
        ("seven", "7", 1),
        ("", "7", 0),
        ("%", "7", 0),
    ],
)
def test_mathvista_cuts_decimals_and_takes_the_number_after_answer_is(answer: str, right: str, expected: float):
    assert scored("mathvista", answer, right) == expected


@pytest.mark.parametrize("metric", sorted(get_args(Metric)))
def test_no_length_of_a_number_stops_a_run(metric: Metric):
    """A model that repeats itself can write more digits than Python makes an integer of (4300)."""
    choices = CHOICES if metric == "multiple_choice" else ()
    right = "B" if choices else "7"
    for answer in ("0." + "3" * 5000, "3." + "0" * 5000, "8" * 5000, "8" * 5000 + "%", "8e" + "8" * 5000):
        assert scored(metric, answer, right, choices=choices) == 0


@pytest.mark.parametrize("answer", ["", " ", ".", "%", "the", "An a.", "?!"])
def test_an_answer_of_mathvista_of_which_nothing_is_left_is_wrong_whatever_is_right(answer: str):
    assert scored("mathvista", answer, "the") == scored("mathvista", answer, answer) == 0


def test_mathvista_cuts_a_long_decimal_too():
    assert scored("mathvista", "0." + "3" * 5000, "0.33") == 1
    assert scored("mathvista", "3." + "0" * 5000, "3") == 1


def test_mathvista_with_choices_does_not_look_into_boxes():
    answer = r"First (A). So \boxed{D}"
    assert scored("mathvista", answer, "A", choices=CHOICES) == 1
    assert scored("multiple_choice", answer, "A", choices=CHOICES) == 0
