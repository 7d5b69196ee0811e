"""Resident memory of the host as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

import psutil

PEAK, NOW = "VmHWM", "VmRSS"


def peak_bytes() -> int:
    """Largest resident set so far of this process and of those below it that live, added up.

    The kernel keeps it, so nothing has to look while times are taken (proc_pid_status(5), VmHWM).
    """
    own = psutil.Process()
    return sum(_status(process.pid, PEAK) for process in (own, *own.children(recursive=True)))


def forget_peak() -> None:
    """Let the largest resident set of this process begin anew at what it holds now (proc_pid_clear_refs(5), "5")."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes() -> int:
    """Resident set of this process now."""
    return _status(psutil.Process().pid, NOW)


def _status(pid: int, key: str) -> int:
    """A figure of /proc/PID/status in bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), "0")
    return int(kilobytes) * 1024
