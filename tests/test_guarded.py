"""A guarded command ends with the process that started it, and what it has started ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nvlm_trt import guarded

LEAVES_ONE_BEHIND = (
    "import os, subprocess, sys, time\n"
    "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], process_group=0)\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {left.pid}\\n')\n"
    "time.sleep(float(sys.argv[2]))\n"
)
STARTS_GUARDED = (
    "import os, subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-I', sys.argv[1], str(os.getpid()), *sys.argv[2:]], start_new_session=True)\n"
    "time.sleep(60)\n"
)


def noted(note: Path) -> list[psutil.Process]:
    """The command and what it has left behind."""
    deadline = time.monotonic() + 10
    while not (note.exists() and note.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [psutil.Process(int(pid)) for pid in note.read_text().split()]


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", LEAVES_ONE_BEHIND, str(note), "2"]
    whole = [sys.executable, "-I", guarded.__file__, str(os.getpid()), *command]
    process = subprocess.Popen(whole, start_new_session=True)
    running, left = noted(note)
    assert running.pid == process.pid
    assert os.getpgid(left.pid) != os.getpgid(running.pid)
    assert process.wait(10) == 0
    assert not psutil.wait_procs([left], timeout=10)[1]


def test_a_command_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", LEAVES_ONE_BEHIND, str(note), "60"]
    parent = subprocess.Popen([sys.executable, "-c", STARTS_GUARDED, guarded.__file__, *command])
    processes = noted(note)
    assert all(process.is_running() for process in processes)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_command_s_own(code: int) -> None:
    command = [
        sys.executable,
        "-I",
        guarded.__file__,
        str(os.getpid()),
        sys.executable,
        "-c",
        f"raise SystemExit({code})",
    ]
    guarding = [sys.executable, "-I", guarded.__file__, str(os.getpid())]
    assert subprocess.run([*guarding, *command], start_new_session=True, check=False).returncode == code
