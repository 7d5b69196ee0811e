"""Tasks of the miniature: what `nvlm-trt eval` reads, the same for equal seeds, never half-written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.miniature import tasks
from nvlm_trt.miniature.tasks import ASKED, write_task


def test_a_task_holds_as_many_questions_of_every_category(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    file = write_task(
        tmp_path / "task", "test", seed=4, per_category=2, tile=112, progress=lambda *done: told.append(done)
    )
    samples = read_tasks(file)
    assert Counter(sample.category for sample in samples) == dict.fromkeys(ASKED, 2)
    assert told[-1] == (22, 22)
    for sample in samples:
        said = [message for turn in sample.history for message in turn] + [sample.question]
        assert sum(message.count("<image>") for message in said) == len(sample.images)
        assert bool(sample.history) == (sample.category == "follow-up")
        assert bool(sample.images) == (sample.category != "text")


def test_equal_seeds_give_equal_tasks(tmp_path: Path) -> None:
    one, two = (write_task(tmp_path / name, "validation", seed=9, per_category=1, tile=112) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert [f.read_bytes() for f in sorted(one.parent.glob("images/*"))] == [
        f.read_bytes() for f in sorted(two.parent.glob("images/*"))
    ]


def test_an_output_that_exists_is_refused_and_a_failed_one_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="at the output already"):
        write_task(tmp_path / "there", "test", seed=1, per_category=1, tile=112)

    def fail(*_: object) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(tasks, "_line", fail)
    with pytest.raises(RuntimeError):
        write_task(tmp_path / "new", "test", seed=1, per_category=1, tile=112)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
