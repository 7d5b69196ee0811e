"""A batch: every request of a file is asked once, and what comes back is on the disk before the next is begun.

The output is one JSON object a line, in the order in which answers come. It only grows: a run that was stopped or
killed goes on where it was, asks what has no record yet, and leaves exactly one record an id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from nvlm_trt.client.batch_ask import Asker
from nvlm_trt.client.batch_ids import BatchIds
from nvlm_trt.client.batch_input import BatchInput, InputFacts
from nvlm_trt.client.batch_output import (
    Tally,
    check_origin,
    holds_answer,
    lock_of,
    read_output,
    write_origin,
)
from nvlm_trt.client.batch_request import BatchRequest
from nvlm_trt.client.parallel import for_each
from nvlm_trt.growing_file import GrowingFile

Count = Callable[[Tally], None]
"""Told what the output holds, after each record."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a run would do.

    Attributes:
        facts: Of the input.
        kept: What the output holds that is not asked again.
    """

    facts: InputFacts
    kept: Tally

    @property
    def to_ask(self) -> int:
        """Records that are missing."""
        return self.facts.records - self.kept.done


def plan_batch(source: Path, output: Path, *, retry_failed: bool = False) -> BatchPlan:
    """Check an input and its output; nothing is sent or written.

    Args:
        source: JSONL of requests.
        output: JSONL of records; it may be missing.
        retry_failed: Whether records with an error are asked again.

    Raises:
        UserError: the input is wrong, or the output is another one's.
    """
    with BatchIds() as ids, BatchInput(source) as lines:
        return _plan(lines.check(ids), ids, output, retry_failed=retry_failed)


class Batch:
    """A checked input and its output, locked and ready to grow; a context manager.

    Args:
        source: JSONL of requests.
        output: JSONL of records; it is made if it is missing.
        retry_failed: Whether records with an error are dropped and asked again.

    Raises:
        UserError: the input is wrong, or the output is another one's or cannot be written.
        BusyError: another run writes the output.
    """

    def __init__(self, source: Path, output: Path, *, retry_failed: bool = False) -> None:
        with ExitStack() as stack:
            self._ids = stack.enter_context(BatchIds())
            self._lines = stack.enter_context(BatchInput(source))
            facts = self._lines.check(self._ids)
            check_origin(output, facts.sha256)  # before anything of ours lies beside a file of somebody else's
            self._file = stack.enter_context(GrowingFile(output, lock_of(output), writer="batch", durable=True))
            self.plan = _plan(facts, self._ids, output, retry_failed=retry_failed)
            write_origin(output, source, facts.sha256)
            if retry_failed:
                self._file.keep(holds_answer)
            self._file.cut()
            self._open = stack.pop_all()

    async def run(self, asker: Asker, *, concurrency: int = 8, progress: Count | None = None) -> Tally:
        """Ask what is missing.

        Args:
            asker: Who asks.
            concurrency: Requests under way at a time.
            progress: Told after each record.

        Returns:
            What the output holds.

        Raises:
            ServerError: the server is gone. What was answered is kept, as after a cancellation.
        """
        tally = replace(self.plan.kept)

        async def ask(request: BatchRequest) -> None:
            record = (await asker.ask(request)).as_json()
            self._file.append(record)
            tally.add(record)
            if progress is not None:
                progress(tally)

        await for_each(self._missing(), ask, concurrency)
        return tally

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _missing(self) -> Iterator[BatchRequest]:
        return (request for request in self._lines.requests(self._ids) if not self._ids.done(request.key))


def _plan(facts: InputFacts, ids: BatchIds, output: Path, *, retry_failed: bool) -> BatchPlan:
    check_origin(output, facts.sha256)
    return BatchPlan(facts, read_output(output, ids, retry_failed=retry_failed))
