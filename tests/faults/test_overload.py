"""Case 15: more is asked for than the server can do. Who comes in is answered in time, the others hear it at once.

The load, its figures and its aims are `scripts/overload.py`'s; they hold on a machine that does nothing else. How a
server that is full refuses is tested in `tests/gateway/test_door.py` and `test_admission.py`, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import FaultRecord

SCRIPT = Path(__file__).parents[2] / "scripts" / "overload.py"
QUEUE_SECONDS = 1.0


def overloaded(engine_dir: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    """The figures of a load."""
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), str(engine_dir), "--json", str(out), *options]
    command += [f"--limit=queue_time={QUEUE_SECONDS}", "--answer-tokens=200"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), ran.stderr[-2000:]
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def note(record: FaultRecord, figures: dict[str, Any], variant: str) -> None:
    """Note what the table shows."""
    others = (
        f"{figures['accepted']} came in, first token p99 {figures['accepted_ttft_p99_s']:.2f} s; "
        f"{figures['refused']} refused; recovered in {figures['recovery_s']:.1f} s"
    )
    record(time_ms=figures["refused_p99_ms"], memory_mb=figures["growth_mb"], others=others, variant=variant)


@pytest.mark.chaos
@pytest.mark.fault(case=15)
def test_a_minute_of_four_times_the_capacity_meets_every_aim(
    engine_dir: Path, tmp_path: Path, fault_record: FaultRecord
) -> None:
    seconds = os.environ.get("NVLM_TRT_CHAOS_SECONDS", "60")
    figures = overloaded(engine_dir, tmp_path, f"--seconds={seconds}")
    note(fault_record, figures, f"for {seconds} s")
    assert figures["passed"], figures
