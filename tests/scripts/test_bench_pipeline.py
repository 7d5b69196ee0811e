"""scripts/bench_pipeline.py: a round of it, of a tiny checkpoint. No figure is judged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from nvlm_trt.model.synthetic import tiny_spec, write_synthetic


def test_a_round_leaves_what_lay_in_the_folder_and_the_checkpoint(
    load_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load_script("bench_pipeline")
    monkeypatch.setattr(script, "make_checkpoint", lambda out, _layers, _vocab: write_synthetic(out, tiny_spec()))
    for name in ("out", "copy", "scales"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("mine")
    parts = ["--part", "vision-export", "--part", "fp8-tp4"]
    monkeypatch.setattr(sys, "argv", ["bench_pipeline.py", str(tmp_path), "--rounds", "1", *parts])
    script.main()
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["vision-export", "fp8-tp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2-8192", "copy", "out", "scales"]
    assert [path.read_text() for path in tmp_path.glob("*/weights")] == ["mine"] * 3
