"""The shared memory of the Python backend: regions named after their owner, so that leftovers can be told apart."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Final

from nvlm_trt.logs import fields

SHARED_MEMORY: Final = Path("/dev/shm")
_NAME: Final = re.compile(r"nvlm_trt_(\d+)_(\d+)_\d+_")
_numbers = itertools.count()

log = logging.getLogger(__name__)


def new_prefix() -> str:
    """A prefix for the regions of one server: process id and start time of its supervisor, and a number."""
    return f"nvlm_trt_{os.getpid()}_{_started(os.getpid())}_{next(_numbers)}_"


def remove_regions(prefix: str, directory: Path = SHARED_MEMORY) -> int:
    """Remove the regions of a server that has ended; returns their number."""
    files = [file for file in _files(directory) if file.name.startswith(prefix)]
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def region_bytes(prefix: str, directory: Path = SHARED_MEMORY) -> int:
    """Memory that the regions of a server take: pages that were written, not their sizes."""
    held = 0
    for file in _files(directory):
        if file.name.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                held += file.stat().st_blocks * 512
    return held


def remove_stale_regions(directory: Path = SHARED_MEMORY) -> int:
    """Remove the regions whose supervisor no longer runs (a process id used again has another start time).

    Another user's are left, with a warning: they keep no server from starting. Returns how many are gone.
    """
    removed = 0
    for file in _files(directory):
        named = _NAME.match(file.name)
        try:
            if named and _started(int(named[1])) != int(named[2]):
                file.unlink(missing_ok=True)
                removed += 1
        except OSError as error:
            log.warning("shared memory that looks like a leftover is left", extra=fields(reason=str(error)))
    return removed


def _files(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if there is no such process.

    Read from /proc (proc(5), stat, field 22): psutil adds the boot time, which moves when the clock is set, and a
    running server's regions would then look like leftovers.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])  # field 3 is the first one after the name
