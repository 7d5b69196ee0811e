"""The directory of a running server: its log, links to the backend, heartbeats. Removed when the server has ended."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import psutil

PREFIX: Final = "nvlm-trt-serve-"


def new_runtime_dir() -> Path:
    """A directory of this process's own; only its user can read it."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def remove_stale_runtime_dirs() -> int:
    """Remove the directories of servers whose supervisor was killed; returns their number."""
    removed = 0
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = directory.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
    return removed
