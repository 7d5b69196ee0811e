"""Write a large file from front to back at the speed of the disk, with its digest known when it is complete.

Reading a file of 80 GB once more to learn its SHA-256 takes as long as writing it. So the digest is taken from the
bytes on their way, by a thread of its own: hashlib and the kernel both work without the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

Digested = Callable[[Path, str], None]
"""Told a file that is complete and on the disk, and the SHA-256 (hex) of its bytes."""

THREAD_BYTES: Final = 64 << 10
"""Less than this is digested faster than a thread is woken."""

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
        self._hasher = None if digested is None else hashlib.sha256()
        self._thread = None if digested is None else ThreadPoolExecutor(1, "digest")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

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
        if self._digested is not None and self._hasher is not None:
            self._digested(self._path, self._hasher.hexdigest())

    def close(self) -> None:
        """Let the file go, finished or not."""
        os.close(self._descriptor)
        if self._thread is not None:
            self._thread.shutdown()

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes (a flat view of them); `data` may be changed as soon as this returns."""
        view = memoryview(data)
        if self._hasher is not None and self._thread is not None and len(view) >= THREAD_BYTES:
            digesting = self._thread.submit(self._hasher.update, view)
            self._append(view)
            digesting.result()
            return
        if self._hasher is not None:
            self._hasher.update(view)
        self._append(view)

    def skip_to(self, offset: int) -> None:
        """Append zeros up to `offset`, which lies a few pages ahead at most."""
        self.write(bytes(offset - self._position))

    def _append(self, view: memoryview) -> None:
        while view:
            count = os.write(self._descriptor, view)
            self._position += count
            view = view[count:]
        if self._position - self._flushed >= FLUSH_BYTES:
            # Pages that are not on the disk yet are only sent there by this; none of them is dropped.
            os.posix_fadvise(self._descriptor, self._flushed, self._position - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._position
