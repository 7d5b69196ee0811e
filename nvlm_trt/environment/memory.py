"""How much memory there is: of the machine, or of the container or service that this process is in."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, NamedTuple

import psutil

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")
UNIFIED: Final = "0::"
"""What the line of control groups of version 2 begins with."""


class Memory(NamedTuple):
    """Bytes in all, and bytes that a program may still take."""

    total: int
    available: int


def memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> Memory:
    """What the machine has, or what a control group (version 2) around this process leaves, whichever is less.

    Args:
        cgroups: Where the groups are mounted.
        own: Names the group of this process.
    """
    seen = psutil.virtual_memory()
    total, available = int(seen.total), int(seen.available)
    for group in _around(cgroups, own):
        with contextlib.suppress(OSError, ValueError, StopIteration):  # the first has no bound, others "max"
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            total, available = min(total, limit), min(available, limit - used + _files(group))
    return Memory(total, max(0, available))


def _around(cgroups: Path, own: Path) -> list[Path]:
    """The group of this process and those around it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.removeprefix(UNIFIED) for line in lines if line.startswith(UNIFIED)), "/")
    group = cgroups / name.lstrip("/")
    return [each for each in (group, *group.parents) if each.is_relative_to(cgroups)]


def _files(group: Path) -> int:
    """Bytes of files that the kernel gives up where memory is wanted."""
    lines = (group / "memory.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
