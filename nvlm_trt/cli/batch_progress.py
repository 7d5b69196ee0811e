"""How far a batch is, on stderr: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from nvlm_trt.client.batch_output import Tally

LINE_SECONDS = 10.0
"""How often a plain log is told."""

Report = Callable[["Tally"], None]


def progress_for(total: int, earlier: int, *, silent: bool) -> AbstractContextManager[Report]:
    """Tell about a batch while it lasts.

    Args:
        total: Records in all.
        earlier: Records that earlier runs left.
        silent: Tell nothing.
    """
    if silent:
        return nullcontext(lambda _tally: None)
    return _bar(total, earlier) if sys.stderr.isatty() else plain_lines(total, earlier, sys.stderr)


@contextmanager
def plain_lines(
    total: int, earlier: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """A line for a file or a CI job, at most one every ten seconds."""
    started = told = clock()

    def report(tally: Tally) -> None:
        nonlocal told
        now = clock()
        if now - told < LINE_SECONDS:
            return
        told = now
        rate = (tally.done - earlier) / (now - started)
        left = (total - tally.done) / rate
        stream.write(
            f"{tally.done} of {total} records, {tally.failed} failed, {rate_in_words(rate)}, {left:.0f} s left\n"
        )
        stream.flush()

    yield report


@contextmanager
def _bar(total: int, earlier: int) -> Iterator[Report]:
    from nvlm_trt.cli.bars import counting_bars

    started = time.monotonic()
    with counting_bars("{task.fields[failed]} failed", "{task.fields[rate]}", speed_over=600.0) as bars:
        bar = bars.add_task("records", total=total, completed=earlier, failed=0, rate="")

        def report(tally: Tally) -> None:
            rate = (tally.done - earlier) / (time.monotonic() - started)
            bars.update(bar, completed=tally.done, failed=tally.failed, rate=rate_in_words(rate))

        yield report


def rate_in_words(rate: float) -> str:
    """Records in a second, or in a minute where that says more."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
