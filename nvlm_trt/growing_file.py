"""A file of JSON Lines that one process at a time adds to, and that a kill leaves whole but for its last line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from nvlm_trt.durable import sync_folder
from nvlm_trt.errors import BusyError, UserError

_BLOCK = 1 << 16


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without a last one that a kill cut off; none where there is no file."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


class GrowingFile:
    """Lines that are added one by one.

    What a kill cut off is removed by `cut`, which comes before the first `append`: whoever opens a wrong file by
    mistake can look at its lines first.

    Args:
        path: The file; it and its folder are made if they are missing.
        lock: Of whoever writes it; the kernel drops it when the process dies.
        writer: Who writes it, in a word.
        durable: Whether each line is flushed to the disk, and not only handed to the operating system.

    Raises:
        UserError: it cannot be written.
        BusyError: another process writes it.
    """

    def __init__(self, path: Path, lock: Path, *, writer: str, durable: bool = False) -> None:
        self._path, self._writer, self._durable = path, writer, durable
        self._lock = FileLock(lock)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:  # an OSError too
            raise BusyError(f"another {writer} writes here", seen=path, fix="give another output") from None
        except OSError as error:
            raise self._cannot(error) from None
        try:
            self._file = self._open()
        except OSError as error:
            self._lock.release()
            raise self._cannot(error) from None

    def lines(self) -> Iterator[bytes]:
        """The lines that are there, from the first one on."""
        return whole_lines(self._path)

    def cut(self) -> None:
        """Remove a last line that a kill cut off."""
        self._file.truncate(_end_of_lines(self._path))

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Leave only some of the lines, at once: a kill leaves all of them or the wanted ones."""
        beside = self._path.with_name(f".{self._path.name}.tmp")
        try:
            with beside.open("wb") as file:
                file.writelines(line for line in self.lines() if wanted(line))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
            self._file.close()
            self._file = self._open()
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise self._cannot(error) from None

    def append(self, value: object) -> None:
        """Write a value as one line.

        Raises:
            UserError: it cannot be written; no part of it stays in the file.
        """
        line = memoryview(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        size = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            if self._durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)
            raise self._cannot(error) from None

    def close(self) -> None:
        """Close the file and let others write it."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        file: BinaryIO = self._path.open("ab", buffering=0)
        if self._durable:
            sync_folder(self._path.parent)
        return file

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"the output of the {self._writer} cannot be written ({error.strerror})", seen=self._path)


def _end_of_lines(path: Path) -> int:
    """Bytes up to the last line end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
