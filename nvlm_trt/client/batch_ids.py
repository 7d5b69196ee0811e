"""The ids of a batch and what has become of each, on the disk: a batch of any length needs the same memory."""

from __future__ import annotations

import hashlib
import sqlite3
from types import TracebackType
from typing import Self

_CACHE_KIB = 4 * 1024


class BatchIds:
    """Ids in a database without a name, which goes when it is closed or the process dies."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # "": a temporary file, not memory
        for statement in (
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE ids (key TEXT PRIMARY KEY, line INTEGER NOT NULL, digest BLOB NOT NULL,"
            " done INTEGER NOT NULL) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def add(self, key: str, line: int, raw: bytes) -> int | None:
        """Take an id in, with the number and the bytes of its line.

        Returns:
            None, or the line that has it already.
        """
        if self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, 0)", (key, line, _digest(raw))).rowcount:
            return None
        (earlier,) = self._database.execute("SELECT line FROM ids WHERE key = ?", (key,)).fetchone()
        return int(earlier)

    def holds(self, key: str, line: int, raw: bytes) -> bool:
        """Whether an id was taken in with this line."""
        found = self._database.execute("SELECT line, digest FROM ids WHERE key = ?", (key,)).fetchone()
        return bool(found == (line, _digest(raw)))

    def mark(self, key: str) -> bool:
        """Note that an id needs no more asking.

        Returns:
            Whether it is one of the batch that was not marked before.
        """
        return bool(self._database.execute("UPDATE ids SET done = 1 WHERE key = ? AND done = 0", (key,)).rowcount)

    def unmark(self, key: str) -> None:
        """Note that an id is to be asked after all."""
        self._database.execute("UPDATE ids SET done = 0 WHERE key = ?", (key,))

    def done(self, key: str) -> bool:
        """Whether an id was marked."""
        return self._database.execute("SELECT 1 FROM ids WHERE key = ? AND done = 1", (key,)).fetchone() is not None

    def close(self) -> None:
        """Drop the ids."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()
