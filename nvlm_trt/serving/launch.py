"""Become tritonserver: set what a process can only set for itself, then execute it.

Run as ``python launch.py PARENT_PID COMMAND...``; a small program of its own, because code between fork and exec in a
process with threads is not safe.
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
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # otherwise it ended before the signal was asked for
        os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
