"""How verbs write facts to stdout: one JSON object for programs, aligned columns for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import typer


def print_json(value: object) -> None:
    """Write one JSON value on one line."""
    typer.echo(json_line(value))


def json_line(value: object) -> str:
    """One JSON value on one line, non-ASCII text as it is."""
    return json.dumps(value, ensure_ascii=False)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write aligned columns; numbers (and the header above them) are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(cells) and all(_is_number(row[index]) for row in cells) for index in range(len(header))]
    for row in [list(header), *cells]:
        columns = zip(row, widths, right, strict=True)
        typer.echo(
            "  ".join(text.rjust(width) if number else text.ljust(width) for text, width, number in columns).rstrip()
        )


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).removeprefix("-").isdigit() or text == "-"
