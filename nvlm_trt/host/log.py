"""The log file of one tritonserver: never larger than its last megabytes, and what it says went wrong."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 16 << 20
"""Of the end of a log: some hours of a busy server."""

STEP_BYTES: Final = 1 << 20
"""So much is given back at a time; a multiple of any file system's block."""

LAST_BYTES: Final = 1 << 20
"""Of the end of a log, in which last words are looked for."""

KEEP_SIZE_AND_PUNCH_HOLE: Final = 0x01 | 0x02
"""Modes of fallocate(2)."""

RAISED: Final = re.compile(r"Failed to initialize Python stub: \w+: (.+?)(?:\\n|\"|$)", re.MULTILINE)
"""How the Python backend logs what a model raised when it was loaded; newlines are spelt out there."""


class LogFile:
    """A log that other processes write and others read on, neither of which notices what is done here.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._freed = 0

    def trim(self) -> None:
        """Give back the room of all but the end: a hole that reads as zeros takes its place.

        A file that is cut instead loses the lines that are written meanwhile. Does nothing on the few file systems
        that have no holes, and where the file is gone.
        """
        with contextlib.suppress(OSError):
            end = (self.path.stat().st_size - KEPT_BYTES) // STEP_BYTES * STEP_BYTES
            if end > self._freed:
                with self.path.open("r+b") as file:
                    _punch(file.fileno(), self._freed, end - self._freed)
                self._freed = end

    def last_words(self) -> str:
        """What it says went wrong; nothing where the file is gone."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
                return last_words(file.read().decode(errors="replace"))
        except OSError:
            return ""


def last_words(text: str) -> str:
    """What a log says went wrong: what a model raised where one did, else the log's last error lines."""
    raised = RAISED.findall(text)
    if raised:
        return str(raised[-1])
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("+", "|"))]
    errors = [line for line in lines if line.startswith("E") or "error" in line.lower()]
    return " / ".join((errors or lines)[-3:])


def _punch(descriptor: int, start: int, length: int) -> None:
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    fallocate(descriptor, KEEP_SIZE_AND_PUNCH_HOLE, start, length)
