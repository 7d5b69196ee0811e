"""`nvlm-trt doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvlm_trt.doctor.finding import Finding


def doctor(
    checkpoint: Annotated[Path | None, typer.Option(help="An NVLM-D directory whose headers are read.")] = None,
    output: Annotated[Path, typer.Option(help="Where engines would be built: its disk is looked at.")] = Path(),
    engine: Annotated[Path | None, typer.Option(help="An engine directory: can this version serve it?")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what this machine can build and serve, and why not.

    Exit code 0: the cpu target or the gpu target can be built and served; 1: neither; 2: a directory that was given is
    not there. A verdict of "-" is about what only the other target needs.
    """
    from dataclasses import asdict

    from nvlm_trt.cli.output import print_json, print_table
    from nvlm_trt.doctor.diagnosis import findings, hindrances, usable
    from nvlm_trt.doctor.finding import EVERYTHING
    from nvlm_trt.errors import UserError

    for option, directory in (("--checkpoint", checkpoint), ("--engine", engine)):
        if directory is not None and not directory.is_dir():
            raise UserError(f"{option} is no directory", seen=directory, expected="one that is there")
    found = findings(output, checkpoint, engine)
    hindered_by: dict[str, list[str]] = {goal: hindrances(found, goal) for goal in EVERYTHING}
    works = usable(found)
    if json:
        verdicts = {goal: not names for goal, names in hindered_by.items()}
        print_json({**verdicts, "hindered_by": hindered_by, "findings": [asdict(finding) for finding in found]})
    else:
        print_table(("what", "found", "verdict", "remark"), [_row(finding, works) for finding in found])
        typer.echo()
        for goal, names in hindered_by.items():
            verb, target = goal.split("_")
            typer.echo(f"{verb} the {target} target: {'no: ' + ', '.join(names) if names else 'yes'}")
    if not works:
        raise typer.Exit(1)


def _row(finding: Finding, works: bool) -> tuple[str, str, str, str]:
    """A line of the table: where one target works, what the other one lacks is no failure."""
    missed = "-" if works or not finding.needed_for else "no"
    return finding.name, finding.seen, "ok" if finding.ok else missed, finding.remark
