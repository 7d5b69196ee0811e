"""The decoder and the vision encoder compute in turns where both want to: each alone has all cores.

Side by side they would halve each other's cores, and more than that: a product shared by two threads waits for the one
whose core was taken. In turns a decoder step waits for one slice of a tile at most, whatever the images are.

The protocol is a turnstile of two file locks. Whoever wants to compute takes `next`, then `now`, and lets go of `next`;
so it is in front of `next` again only behind the one that waited meanwhile. File locks, because the kernel lets go of
those of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NEXT: Final = "turn.next"
NOW: Final = "turn.now"


class Turns:
    """One party's place at the turnstile. Not thread-safe: a party is one thread at a time.

    Args:
        directory: Where the lock files are, the same for all that take turns; they are made where they are missing. A
            party keeps them open, so the directory may be removed. None for nobody to take turns with.

    Attributes:
        count: Turns that it had so far.
        waiting: Whether it waits for its turn now: then it neither computes nor hangs. Whoever has the turn may hang.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.count = 0
        self.waiting = False
        self._files: tuple[int, int] | None = None
        if directory is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._files = os.open(directory / NEXT, flags, 0o600), os.open(directory / NOW, flags, 0o600)

    def take(self) -> float:
        """Wait for the turn; returns the seconds that it took."""
        self.count += 1
        if self._files is None:
            return 0.0
        began, self.waiting = time.perf_counter(), True
        following, now = self._files
        fcntl.flock(following, fcntl.LOCK_EX)
        fcntl.flock(now, fcntl.LOCK_EX)
        fcntl.flock(following, fcntl.LOCK_UN)
        self.waiting = False
        return time.perf_counter() - began

    def give(self) -> None:
        """Let the others have it."""
        if self._files is not None:
            fcntl.flock(self._files[1], fcntl.LOCK_UN)

    @contextmanager
    def taken(self) -> Iterator[float]:
        """Have the turn for a block; yields the seconds that were waited for it."""
        waited = self.take()
        try:
            yield waited
        finally:
            self.give()

    def pass_on(self) -> None:
        """Let whoever waits go first; without such a one it costs a few system calls."""
        self.give()
        self.take()

    def close(self) -> None:
        """Leave, with or without the turn; may be called twice."""
        files, self._files = self._files, None
        for file in files or ():
            os.close(file)
