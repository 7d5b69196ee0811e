"""Write a large file from front to back at the speed of the disk, with its digest known when it is complete.

Reading a file of 80 GB once more to learn its SHA-256 takes as long as writing it. So a thread follows the writer and
digests what has just been written, in the kernel's own memory, where it still lies; hashlib and the kernel both work
without the interpreter's lock. Neither waits for the other before the end.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self

Digested = Callable[[Path, str], None]
"""Told a file that is complete and on the disk, and the SHA-256 (hex) of its bytes."""

STEP_BYTES: Final = 4 << 20
"""How far the writer goes before it tells the thread that follows, which maps so much at a time: whole pages."""

MAPPED: Final = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
"""How what was written is seen: page by page it would be asked for, each by a fault."""

FLUSH_BYTES: Final = 32 << 20
"""After so many bytes the disk is told to begin: left alone, the kernel waits until gigabytes have gathered."""


class FileWriter:
    """A file being written; a context manager, which syncs the file at the end of a block without an error.

    Args:
        path: The file, overwritten; callers write beside the final name and rename.
        digested: Told the digest when the file is complete; None computes none.
    """

    def __init__(self, path: Path, digested: Digested | None = None) -> None:
        self._path, self._digested = path, digested
        self._position = self._flushed = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._follower = None if digested is None else _Follower(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def finish(self) -> None:
        """See to it that everything written is on the disk, and tell the digest; nothing may be written after it."""
        os.fsync(self._descriptor)
        if self._digested is not None and self._follower is not None:
            self._digested(self._path, self._follower.digest(self._position))

    def close(self) -> None:
        """Let the file go, finished or not."""
        if self._follower is not None:
            self._follower.stop()
        os.close(self._descriptor)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes (a flat view of them)."""
        view = memoryview(data)
        while view:
            count = os.write(self._descriptor, view)
            self._position += count
            view = view[count:]
        self._appended()

    def take(self, descriptor: int, offset: int, count: int) -> int:
        """Append bytes of another file, which the kernel copies.

        Args:
            descriptor: The other file.
            offset: Where in it the bytes begin.
            count: How many.

        Returns:
            Bytes appended: fewer than `count` at the other file's end only.
        """
        taken = 0
        while taken < count and (sent := os.sendfile(self._descriptor, descriptor, offset + taken, count - taken)):
            taken += sent
        self._position += taken
        self._appended()
        return taken

    def skip_to(self, offset: int) -> None:
        """Append zeros up to `offset`, which lies a few pages ahead at most."""
        self.write(bytes(offset - self._position))

    def _appended(self) -> None:
        """See to what follows from more bytes in the file."""
        if self._follower is not None:
            self._follower.follow(self._position)
        if self._position - self._flushed >= FLUSH_BYTES:
            # Pages that are not on the disk yet are only sent there by this; none of them is dropped.
            os.posix_fadvise(self._descriptor, self._flushed, self._position - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._position


class _Follower:
    """Digests a file behind the one who writes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._told = 0
        self._ends: SimpleQueue[int | None] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "digest")
        self._found = self._thread.submit(self._run)

    def follow(self, end: int) -> None:
        """The file is written up to `end`."""
        whole = end - end % STEP_BYTES
        if whole > self._told:
            self._ends.put(whole)
            self._told = whole

    def digest(self, end: int) -> str:
        """SHA-256 (hex) of the whole file, which ends at `end`."""
        self._ends.put(end)
        self._ends.put(None)
        return self._found.result()

    def stop(self) -> None:
        """End the thread, whether or not the digest was asked for."""
        self._ends.put(None)
        self._thread.shutdown()

    def _run(self) -> str:
        hasher, done = hashlib.sha256(), 0
        while (end := self._ends.get()) is not None:
            if (found := os.fstat(self._descriptor).st_size) < end:  # memory beyond a file's end must not be touched
                raise OSError(f"a file being written ends at {found} of {end} bytes")
            while done < end:
                size = min(STEP_BYTES, end - done)
                with mmap.mmap(self._descriptor, size, MAPPED, mmap.PROT_READ, offset=done) as window:
                    hasher.update(window)
                done += size
        return hasher.hexdigest()
