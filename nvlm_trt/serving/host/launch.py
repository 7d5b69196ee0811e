"""Become tritonserver: set what a process can only set for itself, then execute it.

Run as ``python launch.py PARENT_PID COMMAND...`` in a session of its own; a small program of its own, because code
between fork and exec in a process with threads is not safe.

A guard is left behind, a child that ends every process of the session once tritonserver has ended: model processes that
were being started when it was killed wait for it for ever.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
STACK_BYTES: Final = 64 * 1024 * 1024
"""tritonserver 2.51 parses some bodies on the stack: with the usual 8 MiB a 4 MB body ends it."""


def main(parent: int, command: list[str]) -> None:
    """Execute `command`, to be killed when the process `parent` ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    server = os.getpid()
    if os.fork() == 0:
        guard(server)
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() == parent:  # otherwise it ended before the signal was asked for
        os.execv(command[0], command)


def guard(server: int) -> None:
    """Wait until the process `server` ends, then end its group, this process included."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal_when_parent_ends(signal.SIGTERM)
    while os.getppid() == server:
        signal.sigtimedwait({signal.SIGTERM}, 1.0)
    os.killpg(server, signal.SIGKILL)


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
