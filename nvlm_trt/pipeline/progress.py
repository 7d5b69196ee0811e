"""What a person sees of a build, on stderr: bars on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from nvlm_trt.pipeline.preflight import in_words
from nvlm_trt.progress import Progress

LINE_SECONDS = 10.0
"""How often a plain log is told about a step that takes long."""


class Reporter(Protocol):
    """Where a build tells what it does."""

    def line(self, text: str) -> None:
        """Tell one line."""

    def task(self, title: str) -> AbstractContextManager[Progress]:
        """Tell about one step while it lasts; the returned callable takes (bytes done, bytes in all)."""


class Silent:
    """Tells nothing: `--quiet` and `--json`."""

    def line(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """Drop the progress."""
        yield lambda _done, _total: None


def to_nobody(stream: TextIO) -> None:
    """Let a standard stream that cannot be written any more lead nowhere: the interpreter flushes it at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class PlainLines:
    """Log lines for a file or a CI job, at most one every ten seconds for a step."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    def line(self, text: str) -> None:
        """Write the line; once nobody can read it, to nobody: the work goes on."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:  # a closed pipe, a full disk, a terminal that went away
            to_nobody(self._stream)

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """Write a line now and then while the step lasts.

        Rate and time left are those since the first report: what was done before it may be the work of an earlier run.
        """
        told = time.monotonic()
        origin: tuple[int, float] | None = None

        def report(done: int, total: int) -> None:
            nonlocal told, origin
            now = time.monotonic()
            origin = origin or (done, now)
            if now - told < LINE_SECONDS or not done:
                return
            told = now
            text, gained = f"{title}: {in_words(done)} of {in_words(total)}", done - origin[0]
            if gained > 0:
                rate = gained / (now - origin[1])
                text += f", {in_words(int(rate))}/s, {(total - done) / rate:.0f} s left"
            self.line(text)

        yield report


class TerminalBars:
    """A bar for the running step with bytes, rate and time left; finished steps stay as lines."""

    def __init__(self) -> None:
        from rich.console import Console  # not needed where lines are plain, and slow to load

        self._console = Console(stderr=True, highlight=False)

    def line(self, text: str) -> None:
        """Print the line above the bar."""
        self._console.print(text, markup=False)

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """Show a bar while the step lasts; it pulses until bytes are reported."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def reporter_for(*, silent: bool) -> Reporter:
    """Bars where stderr is a terminal, plain lines where it is not, nothing when `silent`."""
    if silent:
        return Silent()
    return TerminalBars() if sys.stderr.isatty() else PlainLines()
