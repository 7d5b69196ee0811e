"""Become tritonserver: set what a process can only set for itself, then go on as a guarded command.

Run as ``python launch.py NICENESS PARENT_PID COMMAND...`` in a session of its own (see nvlm_trt/guarded.py).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Final

GUARDED: Final = Path(__file__).parents[1] / "guarded.py"
"""By its file: this program imports nothing of the package, which need not be on the path."""

STACK_BYTES: Final = 64 * 1024 * 1024
"""tritonserver 2.51 parses some bodies on the stack: with the usual 8 MiB a 4 MB body ends it."""

AUTOGROUP: Final = Path("/proc/self/autogroup")
"""Linux may share the cores between sessions first, and niceness counts inside a session alone: this is a session's."""

AUTOGROUP_TRIES: Final = 5


def main(niceness: int, arguments: list[str]) -> None:
    """Become ``guarded.py`` with these arguments, a larger stack, and behind other programs where cores are short."""
    if niceness:
        os.nice(niceness)
        stand_back(niceness)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    os.execv(sys.executable, [sys.executable, "-I", str(GUARDED), *arguments])


def stand_back(niceness: int) -> None:
    """Set the niceness of this session, where the kernel shares the cores between sessions."""
    for _ in range(AUTOGROUP_TRIES):
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:  # one such change in 0.1 s for the whole machine, unless privileged
            time.sleep(0.1)
        except OSError:  # not every kernel has them, and not every container shows them
            return
        else:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
