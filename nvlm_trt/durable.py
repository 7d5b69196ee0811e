"""Changes to a directory that a killed process or a lost power supply cannot leave half made.

A file is written beside its final name, flushed to the disk and renamed; a rename within one file system is atomic
(POSIX), and flushing the folder afterwards makes the new name itself durable.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a mixture."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Flush every file and every folder below `root` (a folder) to the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder is removed first, because it cannot be replaced atomically.

    The caller must have noted beforehand that `target` is not to be trusted: between the removal and the rename a kill
    leaves it absent.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() or source.is_dir():
        remove(target)
    source.replace(target)
    sync_folder(target.parent)
