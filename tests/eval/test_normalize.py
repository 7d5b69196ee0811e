"""Short answers before they are compared, oddities of the source included (checked against open_flamingo's VQAEval)."""

from __future__ import annotations

import pytest

from nvlm_trt.eval.normalize import normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The red bus", "red bus"),
        ("AN Apple", "apple"),
        ("ten", "10"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("yes, no", "yes no"),
        ("yes,no", "yes no"),
        ("red/blue", "red blue"),
        ("red/ blue", "red blue"),
        ("a-b c-d", "b c d"),
        ("a-b c -d", "ab c d"),
        ("1,000", "1000"),
        ("1,000 red/blue", "1000 redblue"),
        ("3.", "3"),
        ("3.5", "3.5"),
        ("a.b", "ab"),
        ("-5", "5"),
        ("95%", "95%"),
        ("it's", "it's"),
        ("  two \n words ", "2 words"),
        ("", ""),
    ],
)
def test_an_answer_is_normalised_as_in_the_source(text: str, expected: str):
    assert normalize(text) == expected


def test_only_the_first_32_full_stops_are_deleted():
    assert normalize("x." * 40) == "x" * 32 + "x." * 8
