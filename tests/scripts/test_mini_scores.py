"""The scripts that write the sealed questions and the table of scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def score_mini(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("score_mini")


@pytest.fixture
def mini_task(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("mini_task")


class Asked:
    """Stands for the command line: an engine answers with a score, and one cannot be built."""

    def __init__(self, broken: str = "nothing") -> None:
        self.broken = broken
        self.commands: list[list[str]] = []

    def __call__(self, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
        words = list(map(str, arguments))
        self.commands.append(words)
        if "build" in words and self.broken in str(words):
            raise subprocess.CalledProcessError(1, words)
        score = {"name": "ocr", "mean": 0.5}
        return json.dumps({"categories": [score], "overall": score | {"name": "all"}}) if "eval" in words else "done"


def run(score_mini: ModuleType, monkeypatch: pytest.MonkeyPatch, asked: Asked, *options: object) -> int:
    monkeypatch.setattr(score_mini, "_run", asked)
    monkeypatch.setattr(sys, "argv", ["score_mini.py", *map(str, options)])
    code: int = score_mini.main()
    return code


def test_every_row_is_built_without_gates_and_asked_the_same_questions(
    score_mini: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Asked()
    assert run(score_mini, monkeypatch, asked, "--work", tmp_path, "--checkpoint", ".") == 0
    task, *rest = asked.commands
    assert task[0] == "scripts/mini_task.py"
    builds, evals = rest[0::2], rest[1::2]
    assert len(builds) == len(evals) == len(score_mini.ROWS)
    assert {words[words.index("--until") + 1] for words in builds} == {"decoder-compile", "decoder-calibrate"}
    assert {words[words.index("--checkpoint") + 1] for words in builds} == {str(Path.cwd())}
    assert len({words[words.index("--task") + 1] for words in evals}) == 1
    assert len({words[words.index("--output") + 1] for words in evals}) == len(evals)
    scored, _, *table = (tmp_path / "scores.md").read_text().splitlines()
    assert scored.endswith(", 100 questions a category:")
    assert table[0] == "| | ocr | all |"
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {row.title}" for row in score_mini.ROWS]
    assert table[2].endswith("| 50.0 | 50.0 |")


def test_a_row_made_alone_joins_the_others_and_a_failed_one_is_told(
    score_mini: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(score_mini, monkeypatch, Asked(), "--work", tmp_path, "--only", "thumbnail")
    assert run(score_mini, monkeypatch, Asked(broken="bf16-int4_wo"), "--work", tmp_path, "--only", "weights") == 1
    assert "4-bit weights (int4_wo): exit code 1" in capsys.readouterr().err
    (rows,) = json.loads((tmp_path / "scores.json").read_text()).values()
    assert list(rows) == ["8-bit weights (int8_wo), the default", "fp32, thumbnail only"]


def test_another_checkpoint_or_number_of_questions_has_a_table_of_its_own(
    score_mini: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "mini"
    checkpoint.mkdir()
    for content, count in (("old", 100), ("new", 100), ("new", 50), ("new", 100)):
        (checkpoint / "config.json").write_text(content)
        words = ("--checkpoint", checkpoint, "--per-category", count, "--only", "thumbnail")
        assert run(score_mini, monkeypatch, Asked(), "--work", tmp_path / "work", *words) == 0
    scores = json.loads((tmp_path / "work" / "scores.json").read_text())
    assert [key.split(", ")[1] for key in scores] == [f"{count} questions a category" for count in (100, 100, 50)]
    assert (tmp_path / "work" / "scores.md").read_text().count("| fp32, thumbnail only |") == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "-1"], "-1 is no whole number of at least 0"),
        (["--per-category", "0"], "0 is no whole number of at least 1"),
        (["--split", "validation"], "needs a --seed"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(
    mini_task: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["mini_task.py", "--output", str(tmp_path / "task"), *options])
    with pytest.raises(SystemExit, match="2"):
        mini_task.main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "task").exists()


def test_an_output_that_cannot_be_made_is_a_mistake_of_the_caller(
    mini_task: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["mini_task.py", "--output", str(tmp_path / "file" / "task")])
    assert mini_task.main() == 2
    assert "file" in capsys.readouterr().err
