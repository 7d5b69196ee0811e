"""Mixed requests for a long time: nothing is wrong, lost or left behind. Hours of it: scripts/soak.sh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("NVLM_TRT_CHAOS_SECONDS", "60"))


@pytest.mark.chaos
@pytest.mark.fault(case=26)
@pytest.mark.timeout(SECONDS + 600)
def test_nothing_is_wrong_lost_or_left_behind(
    engine_dir: Path, tmp_path: Path, fault_record: Callable[..., None]
) -> None:
    command = [sys.executable, "-m", "scripts.soak", "--engine", str(engine_dir), "--out", str(tmp_path)]
    command += ["--duration", f"{SECONDS}s", "--cases", "48", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    facts = json.loads(done.stdout)
    grown = next(check["seen"] for check in facts["checks"] if check["name"].startswith("growth of memory"))
    right = sum(facts["answers"]["right"].values())
    fault_record(memory_mb=grown, others=f"{right} answers, none wrong, none lost")
    assert [check for check in facts["checks"] if not check["passed"]] == []
    assert done.returncode == 0
