"""The output of a batch: whose it is, what is in it, and how it grows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_trt.client.batch_ids import BatchIds
from nvlm_trt.durable import write_atomic
from nvlm_trt.errors import UserError
from nvlm_trt.growing_file import whole_lines

_OTHER_OUTPUT = "name another output, or remove this one"


@dataclass(slots=True)
class Tally:
    """What an output holds.

    Attributes:
        answered: Records with an answer.
        failed: Records with an error.
        num_input_tokens: Of all answers together.
        num_output_tokens: Of all answers together.
    """

    answered: int = 0
    failed: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0

    @property
    def done(self) -> int:
        """Records that the output has."""
        return self.answered + self.failed

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        if "error" in record:
            self.failed += 1
            return
        self.answered += 1
        self.num_input_tokens += record["num_input_tokens"]
        self.num_output_tokens += record["num_output_tokens"]


def lock_of(output: Path) -> Path:
    """The file that is locked while an output is written."""
    return output.with_name(f"{output.name}.lock")


def origin_of(output: Path) -> Path:
    """The file that says which input an output belongs to."""
    return output.with_name(f"{output.name}.input.json")


def check_origin(output: Path, sha256: str) -> None:
    """Refuse an output that belongs to another input.

    Raises:
        UserError: it does, or nothing says that it is the output of a batch.
    """
    if not output.exists() or not output.stat().st_size:
        return
    try:
        recorded = json.loads(origin_of(output).read_bytes())["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            "there is a file that is no output of this batch", seen=output, expected="no file", fix=_OTHER_OUTPUT
        ) from None
    if recorded != sha256:
        raise UserError(
            "the output belongs to another input, or the input was changed",
            seen=f"{output}, made from an input of SHA-256 {recorded}",
            expected=f"SHA-256 {sha256}",
            fix=_OTHER_OUTPUT,
        )


def write_origin(output: Path, source: Path, sha256: str) -> None:
    """Note which input an output belongs to."""
    note = {"input": source.name, "sha256": sha256}
    write_atomic(origin_of(output), (json.dumps(note, ensure_ascii=False) + "\n").encode())


def read_output(output: Path, ids: BatchIds, *, retry_failed: bool) -> Tally:
    """Count what an output holds, and mark those of its ids that are not to be asked again.

    Args:
        output: The file; it may be missing.
        ids: Of the input.
        retry_failed: Whether records with an error are to be asked again; they are not counted then.

    Raises:
        UserError: naming the line that is no record of this batch, or one that is there twice.
    """
    tally = Tally()
    for number, record in _records(output):
        if not ids.mark(str(record["id"])):
            raise UserError(
                "a record of the output has an id that the input lacks, or that it has twice",
                seen=f"{output.name}:{number}: id {record['id']!r}",
                fix=_OTHER_OUTPUT,
            )
        if retry_failed and "error" in record:
            ids.unmark(str(record["id"]))
        else:
            tally.add(record)
    return tally


def holds_answer(line: bytes) -> bool:
    """Whether a line of an output is an answer rather than an error."""
    return "error" not in json.loads(line)


def _records(output: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(whole_lines(output), start=1):
        try:
            record = json.loads(line)
            fields = ("error",) if "error" in record else ("text", "num_input_tokens", "num_output_tokens")
            for field in ("id", *fields):
                record[field]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                "a line of the output is no record of a batch",
                seen=f"{output.name}:{number} ({type(error).__name__}: {error})",
                fix=_OTHER_OUTPUT,
            ) from None
        yield number, record
