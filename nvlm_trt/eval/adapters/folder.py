"""A folder with a published data set: its annotation files and its images, wherever below the folder they lie."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from nvlm_trt.errors import UserError, installing
from nvlm_trt.jsonl import FieldError
from nvlm_trt.parsed import json_value

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

Row = Mapping[str, Any]
"""An entry of an annotation file, as its publisher writes it."""


class DataFolder:
    """Finds and reads what a data set consists of, in the folder and in those that it links to. Nothing is fetched.

    Args:
        path: The folder.
        extracted: Where images go that lie inside a parquet file; made when it is needed.

    Attributes:
        place: File and number of the entry that is read, for messages; the folder before there is one.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, path: Path, extracted: Path) -> None:
        if not path.is_dir():
            raise UserError("there is no such folder of data", seen=path, fix="give it with --data")
        self.path = path.absolute()
        self.place = str(path)
        self._extracted = extracted

    def find(self, *patterns: str) -> list[Path]:
        """The files that match the first of the patterns that any file matches, sorted by name; none of training data.

        Raises:
            UserError: none matches, or training data alone.
        """
        training: set[Path] = set()
        for pattern in patterns:
            files = [file for file in self._files if fnmatchcase(file.name, pattern) and file.is_file()]
            if found := [file for file in files if not _is_training(file.relative_to(self.path))]:
                return found
            training.update(files)
        raise UserError(
            f"the folder has {'training data alone' if training else 'no annotation file of this data set'}",
            seen=self._names(sorted(training)) or self.path,
            expected=" or ".join(patterns),
            fix="give the folder of the split that is evaluated" if training else None,
        )

    def has(self, pattern: str) -> bool:
        """Whether any file matches the pattern, of training data or not."""
        return any(fnmatchcase(file.name, pattern) for file in self._files)

    def find_one(self, *patterns: str) -> Path:
        """As `find`, where there is one such file.

        Raises:
            UserError: none matches, or several do.
        """
        found = self.find(*patterns)
        if len(found) > 1:
            raise UserError(
                "the folder has several such annotation files",
                seen=self._names(found),
                fix="keep one, or give its folder",
            )
        return found[0]

    def rows(self, file: Path, entries: Iterable[object]) -> Iterator[Row]:
        """The entries of an annotation file, with `place` kept.

        Raises:
            FieldError: one is no object.
        """
        for number, entry in enumerate(entries, start=1):
            self.place = f"{file.relative_to(self.path)}, entry {number}"
            if not isinstance(entry, dict):
                raise FieldError(f"seen {type(entry).__name__}, expected an object")
            yield entry

    def image(self, name: object, *, folders: int | None = None) -> Path:
        """The file of an image by its name: as a path in the folder, else anywhere below it.

        A name without a suffix is that of a file with any. Of several files of that name the one counts whose folders
        agree with most of the given ones.

        Args:
            name: As the annotations have it, folders and suffix included or not.
            folders: How many of the given folders, from the last one on, a file must lie in: another one of the same
                name can be of another split or part. None for all that there are.

        Raises:
            UserError: there is none, it cannot be told which, or the name is none.
        """
        asked = PurePosixPath(text(name, "image"))
        direct = self.path / asked
        if not asked.is_absolute() and ".." not in asked.parts and direct.is_file():
            return direct
        given = max(0, len(asked.parts) - 1)
        needed = given if folders is None else min(folders, given)
        agreements = {file: _agreement(file, asked) for file in self._images.get(asked.name, ())}
        nearest = max(agreements.values(), default=-1)
        if nearest < needed:
            wanted = PurePosixPath(*asked.parts[given - needed :])
            raise UserError(
                "an image of the data set is missing",
                seen=repr(name),
                expected=f"a file {str(wanted)!r} at any depth below {self.path}",
            )
        best = [file for file, agreement in agreements.items() if agreement == nearest]
        if len(best) > 1:
            raise UserError(
                f"several images are called {name}", seen=self._names(best), fix="give the folder of one split"
            )
        return best[0]

    def parquet(self, *patterns: str) -> Iterator[Row]:
        """Rows of all parquet files of a pattern, a few in memory at a time.

        Raises:
            UserError: pyarrow is not installed, no file matches, or one cannot be read.
        """
        try:
            arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
        except ImportError as error:  # also where pyarrow asks for numpy 2
            raise UserError("parquet files need pyarrow", seen=error, fix=installing("eval")) from None
        for file in self.find(*patterns):
            try:
                batches = parquet.ParquetFile(file).iter_batches(batch_size=16)
                yield from self.rows(file, (row for batch in batches for row in batch.to_pylist()))
            except (arrow.ArrowException, OSError) as error:
                raise UserError(f"a parquet file cannot be read ({error})", seen=file) from None

    def extract(self, image: Row, name: str) -> Path:
        """The file of an image that lies in a parquet file: `{"bytes": ..., "path": ...}`.

        Args:
            image: The cell.
            name: What the file's begins with; unique in the data set. Whatever it is, the file lies in the folder of
                extracted images. The digest of its bytes follows: another run may be reading what it extracted there.

        Raises:
            UserError: it cannot be written.
        """
        data: bytes = image["bytes"]
        suffix = Path(image["path"] or "").suffix.lower()
        called = f"{_file_name(name)}-{sha256(data).hexdigest()[:12]}"
        path = self._extracted / f"{called}{suffix if suffix in IMAGE_SUFFIXES else '.image'}"
        try:
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f".{path.name}.tmp")
                beside.write_bytes(data)
                beside.replace(path)
        except OSError as error:
            raise UserError(
                f"an image of a parquet file cannot be written ({error.strerror})",
                seen=path,
                fix="give another folder with --output",
            ) from None
        return path

    def _names(self, files: Iterable[Path]) -> str:
        return ", ".join(str(file.relative_to(self.path)) for file in files)

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        """All files below the folder, sorted; each folder is entered once, through a link if there is no other way."""
        found: list[Path] = []
        entered: set[str] = set()
        waiting = [str(self.path)]
        for top in waiting:
            for folder, below, names in os.walk(top):
                if (real := os.path.realpath(folder)) in entered:
                    below.clear()
                    continue
                entered.add(real)
                found += [Path(folder, name) for name in names]
                below.sort()
                waiting += [path for name in below if os.path.islink(path := os.path.join(folder, name))]
        return tuple(sorted(found))

    @cached_property
    def _images(self) -> Mapping[str, list[Path]]:
        """Image files below the folder by name, with suffix and without."""
        files: dict[str, list[Path]] = defaultdict(list)
        for file in self._files:
            if file.suffix.lower() in IMAGE_SUFFIXES:
                files[file.name].append(file)
                files[file.stem].append(file)
        return dict(files)


def _is_training(file: Path) -> bool:
    """Whether a file is of a training split by its name, or lies in the folder "train" of one."""
    return "train" in file.parts or re.search(r"(?<![a-z])train", file.name.lower()) is not None


def _file_name(name: str) -> str:
    """A name as it is, or what is harmless in it and its digest, where it has separators or is long."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100]
    return name if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:12]}"


def _agreement(file: Path, asked: PurePosixPath) -> int:
    """How many folders, from the last one on, a file has in common with what was asked for."""
    pairs = zip(reversed(file.parts[:-1]), reversed(asked.parts[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"an annotation file cannot be read ({error})", seen=path) from None


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a JSONL file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield json_value(line)
    except (OSError, ValueError) as error:
        raise UserError(f"an annotation file cannot be read ({error})", seen=path) from None


def text(value: object, field: str) -> str:
    """A text or a number as text.

    Args:
        value: As the annotations have it.
        field: What it is called there.

    Raises:
        FieldError: it is something else: null is no answer "None", and true none "True".
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise FieldError(f"{field}: seen {value!r}, expected a text or a number")


def texts(value: object, field: str) -> tuple[str, ...]:
    """A text, a number or a list of them as texts; arguments and errors are those of `text`."""
    return tuple(text(each, field) for each in (value if isinstance(value, list) else [value]))
