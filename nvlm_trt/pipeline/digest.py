"""Digests of files, each computed once and believed for as long as the file is the same file.

A 72B checkpoint is 150 GB: reading it on every `build` only to learn that nothing has changed would take minutes. So a
file's SHA-256 is computed by one full streaming read and kept in `.digests.json` of the engine directory together with
the file's size, modification time, status-change time and inode. It is believed while all four are the same. The
status-change time cannot be set by a program, so a byte that is changed by a tool which puts the old modification time
back (``rsync -t``, ``touch -r``) is noticed as well. Deleting `.digests.json` costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from nvlm_trt.durable import write_atomic
from nvlm_trt.progress import Progress

CHUNK_BYTES = 4 << 20
HASHING_THREADS = 4
"""Shards digested at a time: hashlib releases the GIL, and four streams saturate most disks."""

SETTLE_SECONDS = 0.02
"""File systems stamp with the kernel's tick (at most 10 ms): an older file cannot change again within its stamp."""

CACHE_NAME = ".digests.json"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of an output or a checkpoint: its path relative to the directory it belongs to, bytes, and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Stamp:
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def content(self) -> tuple[int, int, int]:
        """What a rename leaves as it is."""
        return self.size, self.mtime_ns, self.inode


class DigestCache:
    """Digests of files, remembered in `folder`/.digests.json (in memory only when `folder` is None).

    Safe to call from several threads. `save` writes what was learnt; a cache that cannot be read counts as empty.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / CACHE_NAME
        self._lock = Lock()
        self._known: dict[str, tuple[_Stamp, str]] = {} if self._path is None else _load(self._path)
        self._saved = dict(self._known)

    def peek(self, path: Path) -> str | None:
        """The digest of `path` if it is known without reading the file, else None."""
        known = self._known.get(_key(path))
        try:
            return known[1] if known is not None and known[0] == _Stamp.of(path) else None
        except FileNotFoundError:
            return None

    def digest(self, path: Path, progress: Progress | None = None) -> str:
        """SHA-256 (hex) of the file's content; `progress` is told the bytes of this file.

        Raises:
            OSError: the file cannot be read.
        """
        known = self.peek(path)
        if known is not None:
            return known
        while True:
            stamp = _settled_stamp(path)
            value = _hash_file(path, stamp.size, progress)
            if _Stamp.of(path) == stamp:  # else it was written while it was read: read it again
                break
        with self._lock:
            self._known[_key(path)] = (stamp, value)
        return value

    def learn(self, path: Path, value: str) -> None:
        """Believe that the file at `path`, as it is now, has this digest."""
        stamp = _settled_stamp(path)
        with self._lock:
            self._known[_key(path)] = (stamp, value)

    def digest_all(self, root: Path, names: Iterable[str], progress: Progress | None = None) -> tuple[FileDigest, ...]:
        """Digest the files `names` (relative to `root`) in parallel, in the given order."""
        ordered = list(names)
        sizes = {name: (root / name).stat().st_size for name in ordered}
        meter = _Meter(sum(sizes.values()), progress)

        def one(name: str) -> FileDigest:
            path = root / name
            known = self.peek(path)
            if known is None:
                known = self.digest(path, meter.file())
            else:
                meter.add(sizes[name])
            return FileDigest(name, sizes[name], known)

        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            return tuple(pool.map(one, ordered))

    def digest_outputs(self, root: Path, outputs: Iterable[str]) -> tuple[FileDigest, ...]:
        """Digest all that `outputs` (relative to `root`) consist of, sorted by name.

        A link counts by what it says, not by where it leads: the content there is the output of another stage.
        """
        names = entries_below(root, outputs)
        marks = {name: mark for name in names if (mark := mark_of(root, name)) is not None}
        files = self.digest_all(root, [name for name in names if name not in marks])
        return tuple(sorted((*files, *marks.values()), key=lambda file: file.path))

    def save(self) -> None:
        """Write the cache beside and rename it, if it has changed; entries of files that are gone are dropped."""
        if self._path is None or self._known == self._saved:
            return
        rows = {
            key: [stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode, value]
            for key, (stamp, value) in sorted(self._known.items())
            if os.path.exists(key)
        }
        write_atomic(self._path, (json.dumps(rows, indent=0) + "\n").encode())
        self._saved = dict(self._known)


class WrittenDigests:
    """Digests of files that were computed while they were written.

    One is taken over when the file has reached its place with the size, modification time and inode that it had when it
    was complete; any other file is read.
    """

    def __init__(self) -> None:
        self._noted: dict[Path, tuple[_Stamp, str]] = {}

    def note(self, path: Path, value: str) -> None:
        """Called with a file that is complete, and its digest."""
        self._noted[path] = (_Stamp.of(path), value)

    def hand_over(self, cache: DigestCache, before: Path, after: Path) -> None:
        """Let a cache know the digests of files that were moved from below `before` to below `after`."""
        for path, (stamp, value) in self._noted.items():
            place = after / path.relative_to(before)
            if place.is_file() and _Stamp.of(place).content == stamp.content:
                cache.learn(place, value)


def mark_of(root: Path, name: str) -> FileDigest | None:
    """What stands for an entry without bytes of its own, a link or an empty folder; None for a file."""
    path = root / name
    if path.is_symlink():
        mark = f"link to {os.readlink(path)}"
    elif path.is_dir():
        mark = "empty folder"
    else:
        return None
    return FileDigest(name, 0, hashlib.sha256(mark.encode()).hexdigest())


def entries_below(root: Path, outputs: Iterable[str]) -> list[str]:
    """The files, links and empty folders that `outputs` (relative to `root`) consist of, sorted, as POSIX paths.

    What is absent is left out, and so is byte code that running an output's Python files leaves.
    """
    found: list[str] = []
    for output in outputs:
        path = root / output
        if path.is_dir() and not path.is_symlink():
            for folder, folders, names in os.walk(path):
                folders[:] = [name for name in folders if name != "__pycache__"]
                links = [name for name in folders if Path(folder, name).is_symlink()]
                here = [Path(folder, name) for name in names + links] if names or folders else [Path(folder)]
                found += [entry.relative_to(root).as_posix() for entry in here]
        elif path.exists() or path.is_symlink():
            found.append(Path(output).as_posix())
    return sorted(found)


def combined(files: Iterable[FileDigest]) -> str:
    """One SHA-256 (hex) over names, sizes and digests."""
    return digest_json({file.path: [file.size, file.sha256] for file in files})


def digest_json(value: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class _Meter:
    """Adds the bytes of several files read at a time into one progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._lock = 0, Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)

    def file(self) -> Progress:
        last = 0

        def report(done: int, _total: int) -> None:
            nonlocal last
            self.add(done - last)
            last = done

        return report


def _key(path: Path) -> str:
    return os.path.abspath(path)


def _settled_stamp(path: Path) -> _Stamp:
    stamp = _Stamp.of(path)
    age = time.time() - max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
    if age < SETTLE_SECONDS:
        time.sleep(SETTLE_SECONDS)
        return _Stamp.of(path)
    return stamp


def _hash_file(path: Path, size: int, progress: Progress | None) -> str:
    hasher, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, size)
    return hasher.hexdigest()


def _load(path: Path) -> dict[str, tuple[_Stamp, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {key: (_Stamp(*map(int, row[:4])), str(row[4])) for key, row in rows.items()}
    except (OSError, ValueError, AttributeError, IndexError, TypeError):
        return {}
