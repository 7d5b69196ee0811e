"""JSON Lines that a person wrote: one object a line, every fault named by field, what was seen and what is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from nvlm_trt.errors import UserError
from nvlm_trt.parsed import json_value


class FieldError(UserError):
    """A field of a line and what is wrong with it."""


def numbered_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, each behind its number, which counts from 1.

    Args:
        path: The file.
        what: What an error calls its content.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # no splitlines(): a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} cannot be read ({error})", seen=path) from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def parsed_line(line: str) -> dict[str, object]:
    """The object of a line.

    Raises:
        FieldError: it holds none.
    """
    try:
        raw = json_value(line)
    except ValueError as error:
        raise FieldError(f"seen no JSON ({error}), expected an object") from None
    if not isinstance(raw, dict):
        raise FieldError(f"seen {type(raw).__name__}, expected an object")
    return raw


def local_files(folder: Path, names: Sequence[str], *, must_exist: bool = True) -> Iterator[Path]:
    """The files that a line's `images` name; relative ones lie beneath the folder, by their names and where links lead.

    Args:
        folder: Of the JSONL.
        names: What it says.
        must_exist: Whether one that is not there is a fault.

    Raises:
        FieldError: naming the first one that is no such file.
    """
    root = folder.resolve()
    for index, name in enumerate(names):
        where, pure = f"images.{index}", PurePosixPath(name)
        if "://" in name or ".." in pure.parts or "\0" in name:
            raise FieldError(f"{where}: seen {name!r}, expected a file beneath the JSONL's folder, or absolute")
        try:
            file = (root / pure).resolve()
            exists = file.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # too long, not allowed; a loop of links; no such letters
            reason = getattr(error, "strerror", None) or error
            raise FieldError(f"{where}: seen {name[:80]!r}, which cannot be looked for ({reason})") from None
        if not pure.is_absolute() and not file.is_relative_to(root):
            raise FieldError(f"{where}: seen {name!r}, which leads out of the JSONL's folder")
        if must_exist and not exists:
            raise FieldError(f"{where}: seen {name!r}, expected a file that exists")
        yield file


def sentence_of(fault: Mapping[str, object], fields: Iterable[str]) -> str:
    """What is wrong, in words.

    Args:
        fault: One of the `errors()` of pydantic.
        fields: Those that a line may have.
    """
    where = ".".join(str(part) for part in fault["loc"]) if isinstance(fault["loc"], tuple) else ""
    if fault["type"] == "missing":
        return f"{where}: seen nothing, expected a value"
    if fault["type"] == "extra_forbidden":
        return f"{where}: seen an unknown key, expected one of {', '.join(fields)}"
    return f"{where}: seen {str(fault['input'])[:80]!r}, expected otherwise: {fault['msg']}"
