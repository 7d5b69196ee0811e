"""scripts/bench_streaming.sh: where it works, and that it removes nothing else; stages are stood in for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
verb, out = sys.argv[1], Path(sys.argv[2])
if os.environ.get("FAILS_IN") == verb:
    sys.exit(2)
if verb == "build":
    record = {"outputs": [{"size": 7}], "seconds": 1.0, "peak_memory_bytes": 7}
    out = Path(sys.argv[sys.argv.index("--output") + 1]) / "decoder" / "checkpoint"
    out.mkdir(parents=True)
    stages = {"vision-export": record, "decoder-convert": record}
    out.parents[1].joinpath("manifest.json").write_text(json.dumps({"stages": stages}))
out.mkdir(exist_ok=True)
(out / "weights").write_text("made by the benchmark")
"""


@pytest.mark.parametrize("fails_in", ["synth", "build", None])
def test_what_lies_in_the_folder_is_still_there_afterwards_and_nothing_else(
    fails_in: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "bench_streaming.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "venv.sh").write_text('export PATH="$PWD/bin:$PATH"\n')
    (tmp_path / "bin" / "nvlm-trt").write_text(STAND_IN)
    (tmp_path / "bin" / "sync").write_text("#!/bin/sh\n")
    for name in ("nvlm-trt", "sync"):
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    mine = tmp_path / "data"
    for name in ("checkpoint", "copy", "bf16", "fp8"):
        (mine / name).mkdir(parents=True)
        (mine / name / "weights").write_text("mine")
    before = sorted(mine.rglob("*"))
    monkeypatch.setenv("FAILS_IN", fails_in or "")
    done = subprocess.run(
        [tmp_path / "scripts" / "bench_streaming.sh", mine, "1", "2"], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == (0 if fails_in is None else 2), done.stderr
    assert done.stdout.count("cp of the checkpoint") == (2 if fails_in is None else 0)
    assert sorted(mine.rglob("*")) == before
    assert {path.read_text() for path in mine.rglob("weights")} == {"mine"}
