"""One line of JSON for each answer, written as it comes: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from nvlm_trt.errors import BusyError, UserError
from nvlm_trt.eval.tasks import Sample

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
        self._lock = FileLock(path.with_name(LOCK_NAME))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            try:
                self.earlier, self._file = self._open()
            except BaseException:
                self._lock.release()
                raise
        except Timeout:  # an OSError too
            raise BusyError("another evaluation writes here", seen=path, fix="give another --output") from None
        except OSError as error:
            raise UserError(f"the records cannot be written ({error.strerror})", seen=path) from None

    def append(self, record: Record) -> None:
        """Write a record and hand it to the operating system."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def _open(self) -> tuple[dict[str, Record], BinaryIO]:
        """The answers that are there by their keys, and the file, ready to grow."""
        kept = _whole_lines(self._path)
        earlier = {record.key: record for record in self._read(kept) if record.error is None}
        file = self._path.open("ab")
        file.truncate(len(kept))
        return earlier, file

    def _read(self, lines: bytes) -> Iterator[Record]:
        for number, line in enumerate(lines.splitlines(), start=1):
            try:
                raw = json.loads(line)
                yield Record(**{**raw, "answers": tuple(raw["answers"])})
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    "this is no file of records",
                    seen=f"{self._path}:{number} ({error})",
                    fix="give another --output, or remove the file",
                ) from None


def _whole_lines(path: Path) -> bytes:
    """The file up to its last line end."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]
