"""Measure round by round, everybody once a round, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

from nvlm_trt import __version__
from nvlm_trt.bench.assemble import (
    Column,
    ceiling_reports,
    definitions,
    growth_reports,
    names_only,
    peer_figures,
    subject_reports,
)
from nvlm_trt.bench.machine import this_machine
from nvlm_trt.bench.peers.engines import PEERS, packages
from nvlm_trt.bench.peers.tool import ToolName
from nvlm_trt.bench.plan import Plan
from nvlm_trt.bench.quiet import NOT_QUIET, QUIET_CORES
from nvlm_trt.bench.record import AccuracyRecord, Device, Rate, RoundRecord
from nvlm_trt.bench.report import Report
from nvlm_trt.bench.subjects import PeerSubject, ReferenceSubject, ServerSubject, Subject, size_of
from nvlm_trt.bench.work import engine_work, peer_work, reference_work
from nvlm_trt.errors import NvlmTrtError


class Measurer(Protocol):
    """Whoever measures; `child.Workers` in earnest."""

    def round(self, subject: Subject, number: int, tools: tuple[ToolName, ...] = ()) -> RoundRecord:
        """Measure one round of one subject."""

    def ceilings(self, device: Device) -> tuple[Rate, ...]:
        """Measure what the machine can do."""

    def accuracy(self, subject: Subject) -> AccuracyRecord:
        """Have a subject answer the task."""


class Benchmark:
    """A benchmark under way.

    Args:
        plan: What is done.
        measurer: Who measures.
        say: Told in a line what is done now.
        save: Given the report after every round, and after every subject's answers, so that nothing is lost.
    """

    def __init__(
        self, plan: Plan, measurer: Measurer, say: Callable[[str], None], save: Callable[[Report], None]
    ) -> None:
        self._plan, self._measurer, self._say, self._save = plan, measurer, say, save
        self._columns = [_column(plan, subject) for subject in plan.subjects]
        self._rates: list[tuple[Rate, ...]] = []
        self._remarks = list(plan.remarks)
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._rounds_done = 0
        self._answered = plan.task is None

    def run(self) -> bool:
        """Measure all rounds, then accuracy.

        Returns:
            False when it was interrupted: what was measured until then is in the report.

        Raises:
            KeyboardInterrupt: it was interrupted before there was anything to report.
        """
        try:
            for number in range(self._plan.request.rounds):
                if all(column.failure for column in self._columns):
                    break
                self._round(number)
                self._rounds_done += 1
                self._save(self.report())
            if self._plan.task is not None:
                self._accuracy()
                self._answered = True
        except KeyboardInterrupt:
            if not self._rounds_done:
                raise
            for column in self._columns:
                del column.rounds[self._rounds_done :]
            del self._rates[self._rounds_done :]
            return False
        return True

    def report(self) -> Report:
        """The report of what was measured so far."""
        plan, request = self._plan, self._plan.request
        ceilings = ceiling_reports(self._rates)
        levels = request.workload.levels
        failed = any(column.failure for column in self._columns)
        return Report(
            nvlm_trt=__version__,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 1),
            complete=self._rounds_done == request.rounds and self._answered and not failed,
            rounds_asked=request.rounds,
            rounds_done=self._rounds_done,
            baseline=plan.subjects[0].name,
            machine=this_machine(),
            workload=request.workload.model_copy(update={"images": names_only(request.workload.images)}),
            task=plan.task,
            prompt_tokens=plan.prompt_tokens,
            bounds=plan.bounds,
            remarks=tuple(dict.fromkeys([*_disturbance(self._columns), *self._remarks])),
            metrics=definitions(),
            ceilings=ceilings,
            subjects=subject_reports(self._columns, ceilings, levels),
            peers=peer_figures(self._columns),
            growth=growth_reports(self._columns),
        )

    def _round(self, number: int) -> None:
        """Everybody once; each round begins with another one."""
        title = f"round {number + 1} of {self._plan.request.rounds}"
        self._say(f"{title}: what the machine can do{self._time_left(number)}")
        try:
            self._rates.append(self._measurer.ceilings(self._plan.device))
        except NvlmTrtError as error:
            self._remarks.append(f"what the machine can do was not measured: {error}")
        turn = number % len(self._columns)
        for column in (*self._columns[turn:], *self._columns[:turn]):
            if column.failure is not None:
                continue
            self._say(f"{title}: {column.subject.name}")
            try:
                tools = self._plan.tools_of(column.subject)
                record = self._measurer.round(column.subject, number, tools)
            except NvlmTrtError as error:
                self._fail(column, error)
                continue
            column.rounds.append(record)
            self._remarks += [f"{column.subject.name}: {reason}" for reason in record.left_out]
            self._remarks += [f"{peer.tool} failed: {peer.error}" for peer in record.peers if peer.error]

    def _accuracy(self) -> None:
        for column in _answering(self._columns):
            self._say(f"accuracy: {column.subject.name}")
            try:
                record = self._measurer.accuracy(column.subject)
            except NvlmTrtError as error:
                self._fail(column, error)
            else:
                column.scores = record.scores
                if record.failed:
                    missed = f"{column.subject.name} could not answer {record.failed} questions of the task"
                    self._remarks.append(missed)
            self._save(self.report())

    def _fail(self, column: Column, error: NvlmTrtError) -> None:
        column.failure = str(error)
        self._say(f"{column.subject.name} failed and is measured no more: {error}")

    def _time_left(self, done: int) -> str:
        if not done:
            return ""
        left = (time.monotonic() - self._clock) / done * (self._plan.request.rounds - done)
        return f" (about {left:.0f} s left)"


def _disturbance(columns: Sequence[Column]) -> Iterator[str]:
    """A warning, where others kept the machine busy while somebody was measured."""
    busy = []
    for column in columns:
        loads = [done.foreign_cores for done in column.rounds if done.foreign_cores is not None]
        if loads and (middle := statistics.median(loads)) > QUIET_CORES:
            busy.append(f"{middle:.1f} cores beside {column.subject.name}")
    if busy:
        yield (
            f"{NOT_QUIET}: other work kept busy {', '.join(busy)} (medians); engines suffer from it unequally, so "
            "neither times nor ratios are those of a quiet machine"
        )


def _answering(columns: Sequence[Column]) -> list[Column]:
    """Whose accuracy is measured: not over HTTP, as the same server has gRPC; not of peers, whose speed is compared."""
    asked = (column for column in columns if column.failure is None and column.subject.transport != "http")
    return [column for column in asked if not isinstance(column.subject, PeerSubject)]


def _column(plan: Plan, subject: Subject) -> Column:
    if isinstance(subject, ServerSubject):
        return Column(subject, "of a server that ran already", None, None)
    engine = plan.engines[subject.engine]
    if isinstance(subject, ReferenceSubject):
        work = reference_work(engine.config, subject.dtype)
        return Column(subject, f"{subject.dtype} throughout", work, size_of(subject.checkpoint))
    if isinstance(subject, PeerSubject):
        peer = PEERS[subject.peer]
        work = peer_work(engine.config, peer.precision)
        return Column(subject, peer.words, work, None, packages=packages(subject.folder, peer.environment))
    return Column(subject, engine.precision, engine_work(engine.config, engine.recipe), engine.size_bytes)
