"""Run the tests of the faults, and make a table of what they measured. `scripts/chaos.sh --help` tells the options."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from nvlm_trt.bench.machine import this_machine

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "faults" / "cases.yaml"
REPORT_VARIABLE = "NVLM_TRT_FAULT_REPORT"
DURATION_VARIABLE = "NVLM_TRT_CHAOS_SECONDS"
GAP = re.compile(r"largest gap of a stream (\d+) ms")
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


@dataclass(frozen=True)
class Case:
    """A fault, what its tests said and what they measured.

    Attributes:
        number: From 1 to 26.
        what: Is done.
        raw: What tritonserver 2.51 does.
        ours: What this server does.
        tests: Files with tests of it.
        passed: How many tests passed.
        failed: Those that did not, skipped ones too.
        times_ms: Times to the answer, or to whatever had to happen.
        memory_mb: By how much the server's memory grew at most.
        others: Who else was affected.
    """

    number: int
    what: str
    raw: str
    ours: str
    tests: tuple[str, ...]
    passed: int
    failed: tuple[str, ...]
    times_ms: tuple[float, ...]
    memory_mb: float | None
    others: str

    @property
    def holds(self) -> bool:
        """Whether it was tested and every test passed."""
        return self.passed > 0 and not self.failed

    @property
    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        times = [_time(ms) for ms in sorted(self.times_ms)]
        span = " to ".join(dict.fromkeys([times[0], times[-1]])) if times else ""
        memory = "" if self.memory_mb is None else f"{self.memory_mb:.0f} MB" if self.memory_mb >= 1 else "< 1 MB"
        state = f"{self.passed} passed" if self.holds else f"{len(self.failed)} failed" if self.failed else "no test"
        return str(self.number), self.what, self.raw, self.ours, span, memory, self.others, state


HEADS = ("case", "what is done", "raw Triton 2.51", "here", "time", "memory", "others affected", "tests")


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def read_cases(lines: Iterable[dict[str, Any]], only: Sequence[int]) -> list[Case]:
    """Cases from the outcomes of tests."""
    outcomes = list(lines)
    texts = yaml.safe_load(CASES.read_text())
    return [_case(number, texts[number], [one for one in outcomes if one["case"] == number]) for number in only]


def _case(number: int, texts: dict[str, str], outcomes: Sequence[dict[str, Any]]) -> Case:
    figures = [figure for outcome in outcomes for figure in outcome["figures"]]
    grown = [figure["memory_mb"] for figure in figures if figure["memory_mb"] is not None]
    return Case(
        number,
        **texts,
        tests=tuple(dict.fromkeys(outcome["test"].partition("::")[0] for outcome in outcomes)),
        passed=sum(outcome["outcome"] == "passed" for outcome in outcomes),
        failed=tuple(outcome["test"] for outcome in outcomes if outcome["outcome"] != "passed"),
        times_ms=tuple(figure["time_ms"] for figure in figures if figure["time_ms"] is not None),
        memory_mb=max(grown, default=None),
        others=_others([figure["others"] for figure in figures if figure["others"]]),
    )


def _others(said: Sequence[str]) -> str:
    """What several tests said of others, each thing once; of gaps the largest."""
    gaps = [int(found[1]) for one in said for found in GAP.finditer(one)]
    parts = dict.fromkeys(part for one in said for part in one.split("; ") if not GAP.search(part))
    return "; ".join([*parts, *([f"largest gap of a stream {max(gaps)} ms"] if gaps else [])])


def markdown(cases: Sequence[Case], header: str) -> str:
    """The table."""
    rows = [HEADS, ("---",) * len(HEADS), *(case.cells for case in cases)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"{header}\n\n{table}\n"


def into_docs(file: Path, table: str) -> None:
    """Put the table between its marks in a document."""
    text = file.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"chaos: {file} has no marks for the table; expected: {BEGIN} and {END}")
    file.write_text(f"{before}{BEGIN}\n{table}{END}{after}")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    known = yaml.safe_load(CASES.read_text())
    if any(number not in known for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of cases; expected: numbers from 1 to 26, as 6,7")
    return numbers


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/chaos.sh", description="Every fault of docs/reliability.md, measured.")
    parser.add_argument("--only", type=_numbers, default=list(range(1, 27)), metavar="N,...", help="these cases alone")
    parser.add_argument("--duration", type=int, default=60, help="seconds of overload, and of the soak; %(default)s")
    parser.add_argument("--report", type=Path, default=ROOT / "chaos-report", metavar="DIR", help="%(default)s")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table between its marks in this document")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")
    parser.add_argument("--list", action="store_true", help="print the cases, run nothing")
    options = parser.parse_args(words)
    if options.duration <= 0:
        parser.error(f"--duration is no time; seen: {options.duration}; expected: seconds above 0")
    return options


def _run(only: Sequence[int], outcomes: Path, duration: int) -> None:
    """Run the tests; what they say goes to standard error."""
    chosen = " or ".join(f"fault(case={number})" for number in only)
    command = [sys.executable, "-m", "pytest", "tests/faults", "-m", chosen, "-q", "--tb=short", "--timeout=900"]
    command.append("--continue-on-collection-errors")  # the others have a say, too
    environment = {**os.environ, REPORT_VARIABLE: str(outcomes.resolve()), DURATION_VARIABLE: str(duration)}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)


def _machine() -> str:
    machine = this_machine()
    return f"{machine.cores} cores of {machine.processor}, {machine.memory_bytes / 2**30:.0f} GiB"


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        The exit status.
    """
    options = _options(words)
    if options.list:
        for number, texts in yaml.safe_load(CASES.read_text()).items():
            print(f"{number:2}  {texts['what']}")
        return 0
    options.report.mkdir(parents=True, exist_ok=True)
    outcomes = options.report / "outcomes.jsonl"
    outcomes.write_text("")
    load = os.getloadavg()[0]
    _run(options.only, outcomes, options.duration)
    cases = read_cases(map(json.loads, outcomes.read_text().splitlines()), options.only)
    header = f"{datetime.date.today()}, {_machine()}; load before: {load:.1f}."
    table = markdown(cases, header)
    report = {"header": header, "cases": [{**asdict(case), "holds": case.holds} for case in cases]}
    (options.report / "report.md").write_text(table)
    (options.report / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.docs is not None:
        into_docs(options.docs, table)
    print(json.dumps(report) if options.json else table)
    broken = [case.number for case in cases if not case.holds]
    if broken:
        print(f"chaos: these do not hold: {', '.join(map(str, broken))}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
