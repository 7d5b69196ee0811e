"""The history file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_trt.cli.conversation import read_history
from nvlm_trt.errors import PromptError


def written(path: Path, value: object) -> Path:
    file = path / "history.json"
    file.write_text(json.dumps(value))
    return file


def test_pairs_and_messages_are_the_same_history(tmp_path: Path) -> None:
    turns = [("Who?", "Me."), ("Why?", "So.")]
    assert read_history(written(tmp_path, turns)) == turns
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    assert read_history(written(tmp_path, messages)) == turns
    assert read_history(written(tmp_path, [])) == read_history(None) == []


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        [["only a question"]],
        [["question", 7]],
        ["text"],
        [{"role": "assistant", "content": "first"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}],
    ],
)
def test_another_shape_is_refused_with_the_shape_expected(tmp_path: Path, value: object) -> None:
    with pytest.raises(PromptError, match=r"the history has another shape; seen: .*; expected: "):
        read_history(written(tmp_path, value))


def test_a_history_ends_with_an_answer(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="ends with a question"):
        read_history(written(tmp_path, [{"role": "user", "content": "a"}]))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(PromptError, match=name):
            read_history(tmp_path / name)
