"""What is asked before the first byte is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvlm_trt.environment.memory import Memory
from nvlm_trt.errors import DoesNotFitError
from nvlm_trt.pipeline import preflight
from nvlm_trt.pipeline.preflight import Needs, check_fits, in_words, needs
from nvlm_trt.pipeline.stage import Estimate, Stage


def stage(name: str, disk: int, memory: int, work: int = 0) -> Stage:
    return Stage(name, (), (), {}, (), (), lambda _context: None, lambda: Estimate(disk, memory, work))


def test_an_old_output_needs_its_room_until_its_successor_is_complete() -> None:
    stages = [stage("a", 100, 5), stage("b", 60, 9)]
    assert needs(stages, {}, {}) == Needs(160, 9, "b")
    assert needs(stages, {"a": 100, "b": 60}, {}) == Needs(100, 9, "b")
    assert needs([], {}, {}) == Needs(0, 0, "")


def test_work_needs_its_room_only_while_its_stage_runs_and_only_once() -> None:
    stages = [stage("a", 100, 5, work=90), stage("b", 60, 9)]
    assert needs(stages, {}, {}).disk_bytes == 100, "and 10 and 60 at the end"
    assert needs(stages, {}, {"a": 70}).disk_bytes == 30, "70 are there, and nothing of them is there at the end"
    assert needs(stages, {}, {}, freed=40).disk_bytes == 60
    assert needs(stages, {}, {}, freed=400).disk_bytes == 0


def test_a_full_disk_is_told_with_figures_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**9))
    with pytest.raises(DoesNotFitError, match=r"seen: 1\.0 GB free; expected: 3\.1 GB; free 2\.1 GB") as caught:
        check_fits(Needs(3 * 10**9, 0, "a"), tmp_path / "not" / "yet" / "there")
    assert str(tmp_path) in str(caught.value)


def test_too_little_memory_names_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory", lambda: Memory(2 * 10**9, 2 * 10**9))
    with pytest.raises(DoesNotFitError, match=r"stage vision-compile does not fit in memory; seen: 2\.0 GB available"):
        check_fits(Needs(0, 24 * 10**9, "vision-compile"), tmp_path)


def test_nothing_to_do_fits_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    check_fits(Needs(0, 0, ""), tmp_path)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (15 * 10**11, "1.50 TB")])
def test_bytes_in_words(count: int, text: str) -> None:
    assert in_words(count) == text
