"""Become tritonserver: set what a process can only set for itself, then execute it.

Run as ``python launch.py PARENT_PID COMMAND...`` in a session of its own; a small program of its own, because code
between fork and exec in a process with threads is not safe.

A guard is left behind, a child that ends every process of the session once tritonserver (or mpirun above it) has ended:
model processes that were being started when it was killed wait for it for ever, and mpirun's ranks have process groups
of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
STACK_BYTES: Final = 64 * 1024 * 1024
"""tritonserver 2.51 parses some bodies on the stack: with the usual 8 MiB a 4 MB body ends it."""

SWEEPS: Final = 3
"""A process may be born while the others are being ended."""


def main(parent: int, command: list[str]) -> None:
    """Execute `command`, found by PATH unless it is a path, to be killed when the process `parent` ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    server = os.getpid()
    if os.fork() == 0:
        guard(server)
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() == parent:  # otherwise it ended before the signal was asked for
        os.execvp(command[0], command)


def guard(server: int) -> None:
    """Wait until the process `server` ends, then end its session, this process last."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal_when_parent_ends(signal.SIGTERM)
    while os.getppid() == server:
        signal.sigtimedwait({signal.SIGTERM}, 1.0)
    for _ in range(SWEEPS):
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid() and session_of(int(name)) == server:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
    os.killpg(server, signal.SIGKILL)


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
