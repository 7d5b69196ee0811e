"""Become tritonserver: set what a process can only set for itself, then go on as a guarded command.

Run as ``python launch.py NICENESS PARENT_PID COMMAND...`` in a session of its own (see nvlm_trt/guarded.py).
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

GUARDED: Final = Path(__file__).parents[2] / "guarded.py"
"""By its file: this program imports nothing of the package, which need not be on the path."""

STACK_BYTES: Final = 64 * 1024 * 1024
"""tritonserver 2.51 parses some bodies on the stack: with the usual 8 MiB a 4 MB body ends it."""


AUTOGROUP: Final = Path("/proc/self/autogroup")
"""Linux may share the cores between sessions first, and niceness counts inside a session alone: this is a session's."""


def main(niceness: int, arguments: list[str]) -> None:
    """Become ``guarded.py`` with these arguments, a larger stack, and behind other programs where cores are short."""
    if niceness:
        os.nice(niceness)
        with contextlib.suppress(OSError):  # not every kernel has them, and not every container shows them
            AUTOGROUP.write_text(str(niceness))
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    os.execv(sys.executable, [sys.executable, "-I", str(GUARDED), *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
