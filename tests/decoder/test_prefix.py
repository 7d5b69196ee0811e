"""Equal names of blocks mean equal prefixes: tokens, and the rows of images, wherever they lie in their table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.decoder.prefix import PrefixKeys

VOCAB, SIZE = 10, 4

TOKENS = st.lists(st.sampled_from([1, 2, "red", "blue"]), max_size=14)
"""Text tokens, and visual ones by what their rows show."""


def row(name: str) -> list[float]:
    return [float(len(name)), -0.5]


def keys(tokens: list[int | str], answer: tuple[int, ...] = (), first_row: int = 0) -> list[bytes]:
    """Names of a prompt whose visual tokens take rows from `first_row` on, and of its answer."""
    ids, rows = [], [[0.0, 0.0]] * first_row
    for token in tokens:
        ids.append(VOCAB + len(rows) if isinstance(token, str) else token)
        if isinstance(token, str):
            rows.append(row(token))
    table = np.array(rows, np.float32) if rows else None
    named = PrefixKeys(np.array(ids, np.int32), table, VOCAB, SIZE)
    for token in answer:
        named.push(token)
    return list(named.of(len(tokens) + len(answer)))


@given(TOKENS, TOKENS)
def test_names_are_equal_exactly_as_far_as_prefixes_are(one, other):
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    pairs = zip(keys(one), keys(other), strict=False)
    assert sum(a == b for a, b in pairs) == same // SIZE
    assert len(set(keys(one))) == len(one) // SIZE


@given(TOKENS, st.integers(0, 5))
def test_where_a_row_lies_in_its_table_does_not_matter(tokens, first_row):
    assert keys(tokens) == keys(tokens, first_row=first_row)


@given(TOKENS, st.lists(st.integers(0, VOCAB - 1), max_size=9))
def test_an_answer_is_named_as_the_prompt_of_the_next_turn(tokens, answer):
    assert keys(tokens, tuple(answer)) == keys([*tokens, *answer])


def test_one_changed_value_of_a_row_changes_the_names_from_there_on():
    ids = np.array([1, 2, 3, 4, VOCAB, VOCAB + 1, 5, 6, 7, 8, 9, 1], np.int32)
    table = np.ones((2, 3), np.float32)
    changed = table.copy()
    changed[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    one, other = (PrefixKeys(ids, each, VOCAB, SIZE).of(12) for each in (table, changed))
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, False]


def test_a_row_and_a_text_token_of_the_same_number_differ():
    table: npt.NDArray[np.float32] = np.zeros((1, 2), np.float32)
    visual = PrefixKeys(np.array([VOCAB, 1, 1, 1], np.int32), table, VOCAB, SIZE).of(4)
    text = [PrefixKeys(np.array([first, 1, 1, 1], np.int32), None, VOCAB, SIZE).of(4) for first in range(VOCAB)]
    assert all(visual != each for each in text)


def test_only_what_is_asked_for_is_named():
    named = PrefixKeys(np.arange(9, dtype=np.int32), None, VOCAB, SIZE)
    assert [len(named.of(tokens)) for tokens in (0, 3, 4, 7, 8, 9)] == [0, 0, 1, 1, 2, 2]
