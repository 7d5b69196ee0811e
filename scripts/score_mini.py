#!/usr/bin/env python
"""The scores of the miniature on its sealed test split: every precision, and what tile tags and tiles are worth.

    python scripts/score_mini.py --work DIR [--checkpoint DIR] [--per-category 100]

Builds engines with the default recipe in each precision, asks each the same questions, and writes scores.json and
scores.md into DIR, a table for each checkpoint and number of questions; rows that were made before stay in theirs.
Everything is the project's own command line; what is done already is not done again. No gate is asked: what a precision
costs is what the table shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from nvlm_trt.bench.machine import this_machine
from nvlm_trt.errors import UserError
from nvlm_trt.miniature import shipped
from nvlm_trt.pipeline.digest import DigestCache
from nvlm_trt.pipeline.fingerprint import identify

ROOT = Path(__file__).parents[1]
DEFAULT_RECIPE = ROOT / "build" / "recipes" / "nvlm-d-mini-cpu.yaml"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: an engine or an emulation, and how it is asked.

    Attributes:
        title: What the table calls it.
        target: Of the recipe.
        vision: Precision of the vision encoder.
        decoder: Precision of the decoder.
        options: Options of `nvlm-trt eval`.
    """

    title: str
    target: str
    vision: str
    decoder: str
    options: tuple[str, ...] = ()

    @property
    def engine(self) -> str:
        """Name of the engine directory."""
        return f"{self.target}-{self.vision}-{self.decoder}"


ROWS = (
    Row("fp32", "cpu", "fp32", "fp32"),
    Row("bf16", "cpu", "bf16", "bf16"),
    Row("8-bit weights (int8_wo), the default", "cpu", "bf16", "int8_wo"),
    Row("int8, vision and decoder", "cpu", "int8", "int8"),
    Row("4-bit weights (int4_wo)", "cpu", "bf16", "int4_wo"),
    Row("fp8, vision and decoder (emulated)", "gpu", "fp8", "fp8", ("--emulate", "fp8")),
    Row("int8_sq, vision int8 (emulated)", "gpu", "int8", "int8_sq", ("--emulate", "int8_sq")),
    Row("int4_awq (emulated)", "gpu", "bf16", "int4_awq", ("--emulate", "int4_awq")),
    Row("fp32, tile tags removed", "cpu", "fp32", "fp32", ("--tags", "removed")),
    Row("fp32, tile tags shuffled", "cpu", "fp32", "fp32", ("--tags", "shuffled")),
    Row("fp32, thumbnail only", "cpu", "fp32", "fp32", ("--max-tiles", "1")),
)


def main() -> int:
    """Build, ask, write the table; 1 when a row could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the engines, records and tables")
    parser.add_argument("--checkpoint", type=Path, help="default: the one of the default recipe")
    parser.add_argument("--per-category", type=int, default=100, help="questions of each category")
    parser.add_argument("--only", help="rows whose title holds this text")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    checkpoint: Path | None = options.checkpoint and options.checkpoint.resolve()
    scored = f"{_named(checkpoint)}, {options.per_category} questions a category"
    work.mkdir(parents=True, exist_ok=True)
    task = work / f"test-{options.per_category}" / "task.jsonl"
    if not task.exists():
        _run("scripts/mini_task.py", "--output", task.parent, "--per-category", options.per_category)
    rows = [row for row in ROWS if options.only is None or options.only in row.title]
    failed = 0
    for row in rows:
        try:
            _add(work, scored, row.title, _score(row, work, checkpoint, task))
        except subprocess.CalledProcessError as error:
            print(f"{row.title}: exit code {error.returncode}", file=sys.stderr)
            failed += 1
    print((work / "scores.md").read_text() if failed < len(rows) else "no row could be made")
    return 1 if failed else 0


def _named(checkpoint: Path | None) -> str:
    """What tells a checkpoint from others: its name and its content."""
    folder = checkpoint or shipped.resolve(yaml.safe_load(DEFAULT_RECIPE.read_text())["checkpoint"], shipped.FOLDER)
    return f"{folder.name} {identify(folder, DigestCache(None)).fingerprint[:12]}"


def _score(row: Row, work: Path, checkpoint: Path | None, task: Path) -> dict[str, object]:
    """Build the row's engine as far as answers need it, and ask it."""
    engine, recipe = work / row.engine, work / f"{row.engine}.yaml"
    fields = yaml.safe_load(DEFAULT_RECIPE.read_text())
    fields |= {"target": row.target, "vision_precision": row.vision, "decoder_precision": row.decoder}
    recipe.write_text(yaml.safe_dump(fields, sort_keys=False))
    last = "decoder-compile" if row.target == "cpu" else "decoder-calibrate"
    given = () if checkpoint is None else ("--checkpoint", checkpoint)
    _run("-m", "nvlm_trt.cli.main", "build", recipe, "--output", engine, *given, "--until", last)
    records = work / "eval" / "-".join([row.engine, *row.options]).replace("--", "")
    asked = ("eval", engine, "--task", task, "--output", records, "--json", *row.options)
    # 1: some question was refused, which counts as a wrong answer
    summary: dict[str, object] = json.loads(_run("-m", "nvlm_trt.cli.main", *asked, codes=(0, 1)))
    return summary


def _run(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    print("+ python", *arguments, file=sys.stderr, flush=True)
    command = [sys.executable, *map(str, arguments)]
    ran = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if ran.returncode not in codes or not ran.stdout:
        raise subprocess.CalledProcessError(ran.returncode, command)
    return ran.stdout


def _add(work: Path, scored: str, title: str, summary: dict[str, object]) -> None:
    """Put a row into the table of what was scored, with the day and the machine, and write all tables anew."""
    file = work / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else {}
    made = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": this_machine().model_dump()}
    rows = scores.get(scored, {}) | {title: summary | {"made": made}}
    scores[scored] = {row.title: rows[row.title] for row in ROWS if row.title in rows}
    file.write_text(json.dumps(scores, indent=2) + "\n")
    tables = (f"{name}:\n\n{_table(rows)}" for name, rows in scores.items())
    (work / "scores.md").write_text("\n".join(tables))


def _table(rows: dict[str, dict[str, object]]) -> str:
    """Categories across, rows down, percent."""
    first = next(iter(rows.values()))
    names = [category["name"] for category in first["categories"]]
    lines = ["| | " + " | ".join([*names, "all"]) + " |", "|---|" + "---|" * (len(names) + 1)]
    for title, summary in rows.items():
        means = [category["mean"] for category in (*summary["categories"], summary["overall"])]
        lines.append(f"| {title} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"{error}")
