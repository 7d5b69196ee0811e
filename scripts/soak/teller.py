"""The line that tells how far a soak is."""

from __future__ import annotations

import math
import sys
import time
from typing import Final

PAUSE: Final = 0.2
PAUSE_IN_LOGS: Final = 60.0


class Teller:
    """Writes to stderr: over its last line in a terminal, a line a minute elsewhere.

    Args:
        quiet: Write nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause = math.inf if quiet else PAUSE if self._terminal else PAUSE_IN_LOGS
        self._next = math.inf if quiet else 0.0

    def __call__(self, text: str) -> None:
        """Tell, if it is time to."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + self._pause
        print(
            f"\r\x1b[K{text}" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
