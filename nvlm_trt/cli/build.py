"""`nvlm-trt build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvlm_trt.pipeline.build import PlannedBuild
    from nvlm_trt.pipeline.manifest import Manifest
    from nvlm_trt.pipeline.plan import Decision


def build(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or the name of one in build/recipes.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint than the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option(help="The engine directory; default engines/<recipe>.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Build anew from this stage on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build every stage anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run and why; write nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another build of the same directory.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, no progress.")] = False,
) -> None:
    """Build an engine directory: inspect, calibrate, export, convert, compile, verify, package.

    A stage whose inputs, settings and code are unchanged is skipped; a build that was stopped goes on where it was.
    Which stages there are hangs on the recipe: --dry-run lists those of yours.
    """
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.environment.threads import let_waiting_threads_sleep
    from nvlm_trt.pipeline.build import BuildRequest
    from nvlm_trt.pipeline.build import build as run_build
    from nvlm_trt.pipeline.build import dry_run as plan_only
    from nvlm_trt.pipeline.plan import Selection
    from nvlm_trt.pipeline.progress import reporter_for

    let_waiting_threads_sleep()
    request = BuildRequest(recipe, checkpoint, output, Selection(until, from_, force), wait)
    if dry_run:
        planned, decisions = plan_only(request)
        if json:
            print_json(_plan_facts(planned, decisions))
        else:
            _show_plan(planned, decisions)
        return
    planned, manifest = run_build(request, reporter_for(silent=quiet or json))
    if json:
        print_json(_result_facts(planned, manifest))
    else:
        typer.echo(planned.engine)


def _plan_facts(planned: PlannedBuild, decisions: Sequence[Decision]) -> dict[str, object]:
    stages = [
        {
            "name": decision.stage.name,
            "action": decision.action,
            "reason": decision.reason,
            "disk_bytes": decision.stage.estimate.disk_bytes,
            "memory_bytes": decision.stage.estimate.memory_bytes,
            "lacks": decision.stage.lacks,
        }
        for decision in decisions
    ]
    return {
        "engine_dir": str(planned.engine),
        "checkpoint": str(planned.job.checkpoint),
        "stages": stages,
        "remarks": planned.sources.remarks(),
    }


def _show_plan(planned: PlannedBuild, decisions: Sequence[Decision]) -> None:
    from nvlm_trt.cli.output import print_table
    from nvlm_trt.pipeline.preflight import in_words

    typer.echo(f"engine directory  {planned.engine}")
    typer.echo(f"checkpoint        {planned.job.checkpoint}\n")
    rows = []
    for decision in decisions:
        stage = decision.stage
        blocked = decision.action == "run" and stage.lacks is not None
        reason = f"{decision.reason}; cannot run here: {stage.lacks}" if blocked else decision.reason
        sizes = [in_words(size) if size else "" for size in (stage.estimate.disk_bytes, stage.estimate.memory_bytes)]
        rows.append((stage.name, decision.action, *sizes, reason))
    print_table(("stage", "action", "disk", "memory", "why"), rows)
    for remark in planned.sources.remarks():
        typer.echo(f"\n{remark}")


def _result_facts(planned: PlannedBuild, manifest: Manifest) -> dict[str, object]:
    chosen = {stage.name for stage in planned.job.stages}
    stages = {
        name: {
            "state": record.state,
            "seconds": record.seconds,
            "peak_memory_bytes": record.peak_memory_bytes,
            "bytes": sum(file.size for file in record.outputs),
        }
        for name, record in manifest.stages.items()
        if name in chosen
    }
    return {"engine_dir": str(planned.engine), "stages": stages, "remarks": planned.sources.remarks()}
