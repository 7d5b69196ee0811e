"""The input of a batch: read twice, once to check all of it and once to ask, and held in memory a line at a time.

What was checked is what is asked: what is appended to the file later is not read, and a line that was changed is
noticed before it is sent.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nvlm_trt.client.batch_ids import BatchIds
from nvlm_trt.client.batch_request import BatchRequest, parse_request
from nvlm_trt.errors import MAX_FAULTS_SHOWN, UserError, listed
from nvlm_trt.jsonl import FieldError, parsed_line


@dataclass(frozen=True, slots=True)
class InputFacts:
    """What a check found.

    Attributes:
        records: Lines that ask something.
        images: Images in all of them.
        sha256: Digest of the file's bytes.
    """

    records: int
    images: int
    sha256: str


class BatchInput:
    """A JSONL file of requests; blank lines are skipped.

    The file stays open: one that takes its name in the meantime is not read.

    Args:
        path: The file. Relative image files lie beneath its folder.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"the input cannot be read ({error.strerror})", seen=path) from None

    def check(self, ids: BatchIds) -> InputFacts:
        """Look at every line, and take its id in.

        Raises:
            UserError: naming line, field, what was seen and what is expected, for every fault; or there is no line.
        """
        digest = hashlib.sha256()
        records = images = wrong = size = 0
        faults: list[str] = []
        for number, raw in self._lines():
            digest.update(raw)
            size += len(raw)
            if not raw.strip():
                continue
            try:
                request = self._request(number, raw)
                if earlier := ids.add(request.key, number, raw):
                    raise FieldError(f"id: seen {request.key!r} in line {earlier} too, expected one of its own")
                records, images = records + 1, images + len(request.images)
            except FieldError as error:
                wrong += 1
                if len(faults) < MAX_FAULTS_SHOWN:
                    faults.append(f"{self._path.name}:{number}: {error}")
        if wrong:
            more = f"\n  ... and {wrong - len(faults)} more" if wrong > len(faults) else ""
            raise UserError(f"{wrong} lines of the input are wrong{listed(faults)}{more}", fix="mend these lines")
        if not records:
            raise UserError("the input is empty", seen=self._path, expected="a JSON object on each line")
        self._size = size
        return InputFacts(records, images, digest.hexdigest())

    def requests(self, ids: BatchIds) -> Iterator[BatchRequest]:
        """The requests in the order of their lines. An image file that went since the check is its request's fault.

        Args:
            ids: Those that the check took in.

        Raises:
            UserError: the file was changed after its check.
        """
        for number, raw in self._lines(self._size):
            if not raw.strip():
                continue
            try:
                request = self._request(number, raw, images_exist=False)
            except FieldError as error:
                raise self._changed(f"{number}: {error}") from None
            if not ids.holds(request.key, number, raw):
                raise self._changed(f"{number}: another line than was checked")
            yield request
        if self._file.tell() != self._size:
            raise self._changed(f" no more than {self._file.tell()} of {self._size} bytes")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lines(self, size: int = sys.maxsize) -> Iterator[tuple[int, bytes]]:
        """The lines, numbered from 1, of so many bytes from the beginning."""
        try:
            self._file.seek(0, os.SEEK_SET)
            number = 0
            while raw := self._file.readline(size):
                number, size = number + 1, size - len(raw)
                yield number, raw
        except OSError as error:  # a folder, a pipe, a disk that fails
            raise UserError(f"the input cannot be read ({error.strerror})", seen=self._path) from None

    def _changed(self, where: str) -> UserError:
        return UserError("the input was changed while it was read", seen=f"{self._path.name}:{where}")

    def _request(self, number: int, raw: bytes, *, images_exist: bool = True) -> BatchRequest:
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise FieldError(f"seen no UTF-8 text ({error.reason}), expected an object") from None
        return parse_request(parsed_line(line), number, self._path.parent, images_exist=images_exist)
