"""The report: what a benchmark leaves as JSON. Its schema is published beside this file as report.schema.json.

A report describes itself: metrics carry their unit, which way is better, and their formula.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from nvlm_trt.bench.growth import GrowthReport
from nvlm_trt.bench.metrics import Better, Section, SizeUnit
from nvlm_trt.bench.record import Frozen, RateName
from nvlm_trt.bench.scenarios import Bounds
from nvlm_trt.bench.spread import Kind as SpreadKind
from nvlm_trt.bench.spread import Spread
from nvlm_trt.bench.subjects import Kind, Transport
from nvlm_trt.bench.workload import Workload
from nvlm_trt.errors import UserError
from nvlm_trt.parsed import json_value

FORMAT: Final = 1
"""Raised when a reader of the older layout could misread the newer one."""

SCHEMA_FILE: Final = Path(__file__).with_name("report.schema.json")

Number = Annotated[float, Field(allow_inf_nan=False)]


class Definition(Frozen):
    """What a metric is; `size_unit` is what its sizes count, where it has sizes."""

    title: str
    unit: str
    better: Better
    section: Section
    formula: str
    size_unit: SizeUnit | None = None


class Range(Frozen):
    """Samples in four numbers.

    Attributes:
        value: The median, or the mean of scores.
        low: The lower end.
        high: The higher end.
        n: Samples.
        spread: What the ends are: quartiles, or the 95% interval of a mean score, Wilson's for a share.
    """

    value: Number
    low: Number
    high: Number
    n: Annotated[int, Field(ge=1)]
    spread: SpreadKind

    @classmethod
    def of(cls, spread: Spread) -> Range:
        """The same as a value of the report."""
        return cls(value=spread.value, low=spread.low, high=spread.high, n=spread.n, spread=spread.kind)

    def overlaps(self, other: Range) -> bool:
        """Whether the two have a value in common, so that their difference may be noise."""
        return self.low <= other.high and other.low <= self.high


class Row(NamedTuple):
    """A line of a table: a metric, and at how many requests under way or at which size."""

    metric: str
    concurrency: int | None = None
    size: int | None = None


class Figure(Frozen):
    """One metric of one subject.

    Attributes:
        metric: Key of `metrics`.
        concurrency: Requests under way; None where it does not matter.
        size: Tokens, tiles or streams; None where it does not matter.
        range: The samples in four numbers.
        ratio: Its value by the baseline's; None where the baseline has none.
        samples: All of them, in the metric's unit.
    """

    metric: str
    concurrency: int | None
    size: int | None = None
    range: Range
    ratio: Number | None
    samples: tuple[Number, ...]

    @property
    def row(self) -> Row:
        """Which line of a table it stands in."""
        return Row(self.metric, self.concurrency, self.size)


class SubjectReport(Frozen):
    """One subject.

    Attributes:
        name: Of the engine directory, of the server, or of the reference's arithmetic.
        kind: An engine directory, a server that ran already, the torch reference, or an engine of others.
        transport: How it was asked.
        precision: Of its parts, in words.
        settings: How an engine of others was set up, in its own words; None for the rest.
        packages: Versions of all packages of its environment; empty for the rest, which share this one's.
        rounds: How many were measured.
        failure: Why no more rounds were measured; None when nothing failed.
        figures: What was measured.
    """

    name: str
    kind: Kind
    transport: Transport
    precision: str
    settings: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    rounds: int
    failure: str | None
    figures: tuple[Figure, ...]

    def figure(self, metric: str, concurrency: int | None = None, size: int | None = None) -> Figure | None:
        """The figure of a metric."""
        row = Row(metric, concurrency, size)
        return next((each for each in self.figures if each.row == row), None)


class CeilingReport(Frozen):
    """What the machine can do.

    Attributes:
        name: "read" from memory, or what matrices are multiplied in.
        unit: Of the rate.
        by: The library that was faster.
        best: The best rate of all rounds: what shares are shares of.
        range: Over the rounds.
    """

    name: RateName
    unit: Literal["GB/s", "GFLOP/s", "GOP/s"]
    by: str
    best: Number
    range: Range


class PeerFigure(Frozen):
    """A figure of a load tool of others beside ours.

    Attributes:
        tool: Its name.
        subject: Which server it asked.
        metric: Key of `metrics`.
        concurrency: Requests under way.
        theirs: Its samples of all rounds.
        ours: Our own in the same rounds.
        agree: Whether the two ranges overlap; None where one sample has no range.
    """

    tool: str
    subject: str
    metric: str
    concurrency: int
    theirs: Range
    ours: Range
    agree: bool | None


class Machine(Frozen):
    """Where it was measured.

    Attributes:
        processor: Its name.
        cores: Cores that this process may use.
        memory_bytes: Of the machine.
        system: Operating system and release.
        gpus: Names of its GPUs.
        versions: Of Python and of the libraries that take part, by name.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    gpus: tuple[str, ...]
    versions: dict[str, str]


class Task(Frozen):
    """The task that accuracy was measured on.

    Attributes:
        name: Of its file.
        sha256: Of its file.
        samples: Questions that were asked.
    """

    name: str
    sha256: str
    samples: int


class Report(Frozen):
    """A benchmark.

    Attributes:
        format: Of this file.
        nvlm_trt: The version that measured.
        started: UTC, ISO 8601.
        seconds: That it took.
        complete: Whether every round that was asked for was measured, of every subject.
        rounds_asked: Rounds that were asked for.
        rounds_done: Rounds in which every subject that had not failed was measured.
        baseline: Name of the subject that ratios are to.
        machine: Where.
        workload: What was asked.
        task: What accuracy was measured on, if it was.
        prompt_tokens: Tokens of each prompt, visual ones included; None where only the server knows.
        bounds: What every engine takes, from which the requests of scenarios follow; None in reports of before.
        remarks: What a reader should know.
        metrics: Definitions by name.
        ceilings: What the machine can do.
        subjects: Whoever was measured, the baseline first.
        peers: Load tools of others.
        growth: How costs grow with sizes.
    """

    format: Literal[1] = FORMAT
    nvlm_trt: str
    started: str
    seconds: Number
    complete: bool
    rounds_asked: int
    rounds_done: int
    baseline: str
    machine: Machine
    workload: Workload
    task: Task | None = None
    prompt_tokens: int | None = None
    bounds: Bounds | None = None
    remarks: tuple[str, ...] = ()
    metrics: dict[str, Definition]
    ceilings: tuple[CeilingReport, ...] = ()
    subjects: tuple[SubjectReport, ...]
    peers: tuple[PeerFigure, ...] = ()
    growth: tuple[GrowthReport, ...] = ()

    def encoded(self) -> bytes:
        """The bytes of report.json."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    def rows(self) -> Iterator[Row]:
        """The line of every figure that some subject has, in the order of the definitions."""
        seen = {figure.row for subject in self.subjects for figure in subject.figures}
        for name in self.metrics:
            yield from sorted((row for row in seen if row.metric == name), key=_order)


def _order(row: Row) -> tuple[int, int]:
    return row.concurrency or 0, row.size or 0


def schema() -> dict[str, Any]:
    """The JSON Schema of a report (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}


def schema_bytes() -> bytes:
    """What report.schema.json holds."""
    return (json.dumps(schema(), indent=1) + "\n").encode()


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        UserError: it cannot be read, or is no report of this format.
    """
    try:
        raw = json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the report cannot be read ({error})", seen=path) from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise UserError("this is no report of this format", seen=f"{path}: format {found!r}", expected=FORMAT)
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"the report is damaged ({where}: {fault['msg']})", seen=path) from None
