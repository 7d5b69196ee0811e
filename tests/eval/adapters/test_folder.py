"""Folders of data sets: what counts as a text, and which file an image is."""

from __future__ import annotations

import math

import pytest

from nvlm_trt.eval.adapters.folder import text, texts
from nvlm_trt.jsonl import FieldError


@pytest.mark.parametrize(("value", "expected"), [("x", "x"), ("", ""), (14, "14"), (5.5, "5.5"), (-0.25, "-0.25")])
def test_a_text_or_a_number_is_a_text(value, expected):
    assert text(value, "label") == expected
    assert texts(value, "label") == texts([value], "label") == (expected,)


@pytest.mark.parametrize("value", [None, True, False, math.nan, math.inf, {"a": 1}, ["a"], b"a"])
def test_what_is_neither_is_refused_and_not_spelled_out(value):
    with pytest.raises(FieldError, match=r"^label: seen .*, expected a text or a number$"):
        text(value, "label")
    with pytest.raises(FieldError, match=r"^label: seen .*, expected a text or a number$"):
        texts(["x", value], "label")
