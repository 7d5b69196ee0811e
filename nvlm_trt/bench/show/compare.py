"""Two reports side by side: did anything change, or is it noise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nvlm_trt.bench.quiet import NOT_QUIET
from nvlm_trt.bench.report import Definition, Figure, Range, Report
from nvlm_trt.bench.show.markdown import ranged, row_title

Verdict = Literal["within spread", "better", "worse", "one sample", "not judged"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in both reports.

    Attributes:
        subject: Whose.
        metric: Its metric.
        concurrency: Requests under way.
        before: In the first report.
        after: In the second.
        ratio: The second by the first; None where the first is zero.
        verdict: "within spread" where the ranges overlap, "one sample" where a side has no spread to tell, "not judged"
            of what disturbed the machine, which is no merit of whoever was measured.
    """

    subject: str
    metric: str
    concurrency: int | None
    before: Figure
    after: Figure
    ratio: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports.

    Attributes:
        first: The first.
        second: The second.
        differences: Figures that both have.
        only_first: Subjects that only the first one has.
        only_second: Subjects that only the second one has.
        remarks: What makes them hard to compare.
    """

    first: Report
    second: Report
    differences: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    remarks: tuple[str, ...]

    def rows(self) -> Iterator[list[str]]:
        """A table for people."""
        for each in self.differences:
            yield [
                each.subject,
                row_title(self.first, each.before.row),
                ranged(each.before.range),
                ranged(each.after.range),
                "-" if each.ratio is None else f"{each.ratio:.2f}x",
                each.verdict,
            ]

    def as_json(self) -> dict[str, object]:
        """One JSON object for programs."""
        return {
            "differences": [
                {
                    "subject": each.subject,
                    "metric": each.metric,
                    "concurrency": each.concurrency,
                    "size": each.before.size,
                    "first": each.before.range.model_dump(),
                    "second": each.after.range.model_dump(),
                    "ratio": each.ratio,
                    "verdict": each.verdict,
                }
                for each in self.differences
            ],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "remarks": list(self.remarks),
        }


def compare(first: Report, second: Report) -> Comparison:
    """Compare every figure that both reports have, by the names of subjects."""
    theirs = {subject.name: subject for subject in second.subjects}
    names = [subject.name for subject in first.subjects]
    differences = []
    for subject in first.subjects:
        for before in subject.figures if subject.name in theirs else ():
            after = theirs[subject.name].figure(*before.row)
            if after is not None and before.metric in second.metrics:
                differences.append(_difference(first, subject.name, before, after))
    return Comparison(
        first,
        second,
        tuple(differences),
        tuple(name for name in names if name not in theirs),
        tuple(name for name in theirs if name not in names),
        tuple(_remarks(first, second)),
    )


def _difference(report: Report, subject: str, before: Figure, after: Figure) -> Difference:
    old, new = before.range, after.range
    ratio = new.value / old.value if old.value else None
    return Difference(
        subject,
        before.metric,
        before.concurrency,
        before,
        after,
        ratio,
        _verdict(report.metrics[before.metric], old, new),
    )


def _verdict(metric: Definition, old: Range, new: Range) -> Verdict:
    if metric.section == "disturbance":
        return "not judged"
    if min(old.n, new.n) == 1:
        return "one sample"
    if old.overlaps(new):
        return "within spread"
    return "better" if (new.value > old.value) == (metric.better == "higher") else "worse"


def _remarks(first: Report, second: Report) -> Iterator[str]:
    if first.workload != second.workload:
        yield "the requests differ: " + ", ".join(
            f"{name} {before!r} and {after!r}"
            for (name, before), (_, after) in zip(first.workload, second.workload, strict=True)
            if before != after
        )
    if first.prompt_tokens != second.prompt_tokens:
        yield f"the prompts differ: {first.prompt_tokens} and {second.prompt_tokens} tokens"
    if None not in (first.bounds, second.bounds) and first.bounds != second.bounds:
        yield "the requests of scenarios differ: the engines take other tiles, prompts or answers"
    machines = [_machine(report) for report in (first, second)]
    if machines[0] != machines[1]:
        yield f"the machines differ: {' and '.join(machines)}"
    if first.task != second.task:
        yield "accuracy is of different tasks: " + " and ".join(
            "none" if task is None else f"{task.samples} questions of {task.name}" for task in (first.task, second.task)
        )
    theirs = {subject.name: subject.precision for subject in second.subjects}
    for subject in first.subjects:
        if (precision := theirs.get(subject.name, subject.precision)) != subject.precision:
            yield f"{subject.name} is of two precisions: {subject.precision} and {precision}"
    for name, definition in first.metrics.items():
        other = second.metrics.get(name, definition)
        if (definition.unit, definition.formula) != (other.unit, other.formula):
            yield f"{definition.title} is worked out in two ways"
    for report in (first, second):
        if not report.complete:
            yield f"the report of {report.started} is not complete"
        yield from (f"of {report.started}: {remark}" for remark in report.remarks if remark.startswith(NOT_QUIET))


def _machine(report: Report) -> str:
    machine = report.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    return f"{machine.cores} cores of {machine.processor}{gpus}"
