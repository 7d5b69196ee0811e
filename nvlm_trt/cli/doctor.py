"""`nvlm-trt doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvlm_trt.pipeline.diagnosis import Finding


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what this machine can build and serve, and why not.

    Exit code 0: the cpu target can be built and served; 1: it cannot.
    """
    from dataclasses import asdict

    from nvlm_trt.cli.output import print_json, print_table
    from nvlm_trt.pipeline.diagnosis import can_build, can_serve, findings

    found = findings()
    verdicts = {"build_cpu": can_build(found), "serve_cpu": can_serve(found), "build_gpu": False}
    if json:
        print_json({**verdicts, "findings": [asdict(finding) for finding in found]})
    else:
        print_table(("what", "found", "verdict", "remark"), [_row(finding) for finding in found])
        typer.echo()
        for verdict, possible in verdicts.items():
            verb, target = verdict.split("_")
            typer.echo(f"{verb} the {target} target: {'yes' if possible else 'no'}")
    if not (verdicts["build_cpu"] and verdicts["serve_cpu"]):
        raise typer.Exit(1)


def _row(finding: Finding) -> tuple[str, str, str, str]:
    return finding.name, finding.seen, "ok" if finding.ok else "no", finding.remark
