"""One build of an engine directory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nvlm_trt.errors import BusyError

LOCK_NAME = ".lock"


@contextmanager
def locked(engine: Path, *, wait: bool, fix: str = "wait for it") -> Iterator[None]:
    """Hold the lock of an engine directory, which must exist; the kernel drops it when the process dies.

    Args:
        engine: The directory.
        wait: Wait for whoever holds it.
        fix: What the caller can do instead of waiting here.

    Raises:
        BusyError: somebody else holds it and `wait` is False.
        OSError: the directory cannot be written.
    """
    lock = FileLock(engine / LOCK_NAME)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BusyError("another build holds this engine directory", seen=engine, fix=fix) from None
    try:
        yield
    finally:
        lock.release()
