"""Run a command in a session that ends with it, and with the process that started it, however those end.

Run as ``python guarded.py PARENT_PID COMMAND...`` in a session of its own; a small program of its own, because code
between fork and exec in a process with threads is not safe, and one that needs nothing but the standard library.

A guard is left behind, a child that ends every process of the session once the command has ended: what it had started
may wait for it for ever (model processes of tritonserver), or has process groups of its own (mpirun's ranks).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1

SWEEPS: Final = 3
"""A process may be born while the others are being ended."""


def main(parent: int, command: list[str]) -> None:
    """Execute `command`, found by PATH unless it is a path, to be killed when the process `parent` ends."""
    leader = os.getpid()
    if os.fork() == 0:
        guard(leader)
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() == parent:  # otherwise it ended before the signal was asked for
        os.execvp(command[0], command)


def guard(leader: int) -> None:
    """Wait until the process `leader` ends, then end its session, this process last."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal_when_parent_ends(signal.SIGTERM)
    while os.getppid() == leader:
        signal.sigtimedwait({signal.SIGTERM}, 1.0)
    for _ in range(SWEEPS):
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid() and session_of(int(name)) == leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
    os.killpg(leader, signal.SIGKILL)


def session_of(pid: int) -> int | None:
    """The session of a process; None if there is no such process."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
