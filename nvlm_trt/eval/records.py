"""One line of JSON for each answer, written as it comes: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from nvlm_trt.errors import UserError
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.growing_file import GrowingFile

RECORDS_NAME = "records.jsonl"
LOCK_NAME = ".lock"


@dataclass(frozen=True, slots=True)
class Record:
    """An answer and its score.

    Attributes:
        id: The sample's.
        key: Digest of all that the answer depends on, see `record_key`.
        category: The sample's.
        question: The sample's.
        answers: The right ones.
        text: What was answered; "" where that failed.
        score: By the sample's metric.
        output_tokens: Tokens of the answer.
        seconds: From question to answer.
        error: Why the sample could not be answered; None where it was. Such a sample is asked again by the next run.
    """

    id: str
    key: str
    category: str
    question: str
    answers: tuple[str, ...]
    text: str
    score: float
    output_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None


def record_key(run: str, sample: Sample) -> str:
    """Digest of all that an answer depends on.

    Args:
        run: What the run has in common: who answers, and with which options.
        sample: The sample; of its images the contents count, not the names. Right answers, metric and category do not
            count: an answer is scored anew each time.
    """
    asked = [run, sample.question, sample.history, sample.system, sample.max_tokens, sample.max_tiles, sample.id]
    digest = sha256(json.dumps(asked).encode())
    for image in sample.images:
        try:
            digest.update(sha256(image.read_bytes()).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


class RecordFile:
    """A file of records that grows; a last line that was cut off by a kill is dropped.

    Args:
        path: The file; it and its folder are made if they are missing.

    Raises:
        UserError: it cannot be read or written, or is no file of records.
        BusyError: another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = GrowingFile(path, path.with_name(LOCK_NAME), writer="evaluation")
        try:
            self.earlier = {record.key: record for record in self._read() if record.error is None}
            self._file.cut()
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Write a record and hand it to the operating system."""
        self._file.append(asdict(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> Iterator[Record]:
        for number, line in enumerate(self._file.lines(), start=1):
            try:
                raw = json.loads(line)
                yield Record(**{**raw, "answers": tuple(raw["answers"])})
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    "this is no file of records",
                    seen=f"{self._path}:{number} ({error})",
                    fix="give another --output, or remove the file",
                ) from None
