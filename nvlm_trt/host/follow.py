"""The log of tritonserver and its model processes, passed on as it grows: who looks at a container sees its stderr."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

POLL_SECONDS: Final = 0.25
CHUNK_BYTES: Final = 1 << 20
"""So much is read at a time."""

MAX_LINE: Final = 64 << 10
"""Bytes of a line that has no end yet."""

OURS: Final = re.compile(r"\{\"time\": |\d{4}-\d\d-\d\dT[\d:.]+Z ")
"""How lines begin that `nvlm_trt.logs` wrote."""

TRITON: Final = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")
"""How tritonserver begins its lines."""

TABLE: Final = re.compile(r"[+|]")
"""How the lines of tritonserver's tables begin, about its models and options."""

NO_GPU: Final = re.compile(r"CUDA|CudaDriver|pinned|NVML|DCGM", re.IGNORECASE)
"""What tritonserver complains of where there is no GPU and none is needed."""

LEVELS: Final = {"I": logging.DEBUG, "W": logging.WARNING, "E": logging.ERROR, "F": logging.ERROR}

log = logging.getLogger("tritonserver")


class LogFollower:
    """Passes lines on from a thread of its own: those of our processes as they are, others as events of this log.

    Args:
        file: The log as of now: a server that is replaced has a new one; None where there is none yet.
        out: Where our lines go; None for stderr.
        expected: What is found in lines of tritonserver that mean nothing here: they have level debug.
    """

    def __init__(
        self, file: Callable[[], Path | None], out: TextIO | None = None, expected: re.Pattern[str] | None = None
    ) -> None:
        self._file = file
        self._out = out
        self._expected = expected
        self._read: Path | None = None
        self._place = 0
        self._rest = b""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvlm-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pass on what is there, and end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        file = self._file()
        if file != self._read:
            self._read_on()  # the last words of the one before
            self._read, self._place, self._rest = file, 0, b""
        self._read_on()

    def _read_on(self) -> None:
        while data := self._next():
            self._take(data)

    def _next(self) -> bytes:
        """What comes next in the log; nothing at its end."""
        if self._read is None:
            return b""
        try:
            with self._read.open("rb") as opened:
                start = os.lseek(opened.fileno(), self._place, os.SEEK_DATA)
                opened.seek(start)
                data = opened.read(CHUNK_BYTES)
        except OSError:  # there is no more, or it went away with its server
            return b""
        if start > self._place:  # whoever reads our stderr was slower than the log was trimmed
            log.warning("%d bytes of the server's log were left out", start - self._place)
        self._place = start + len(data)
        return data

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._pass_on(line.decode(errors="replace"))

    def _pass_on(self, line: str) -> None:
        if OURS.match(line):
            print(line, file=self._out or sys.stderr, flush=True)  # a line of the log already
        elif line.strip():
            log.log(self._level(line), "%s", line)

    def _level(self, line: str) -> int:
        if TABLE.match(line) or (self._expected is not None and self._expected.search(line)):
            return logging.DEBUG
        triton = TRITON.match(line)
        return LEVELS[triton[1]] if triton else logging.INFO
