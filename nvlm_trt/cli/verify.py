"""`nvlm-trt verify`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from nvlm_trt.pipeline.progress import Reporter
    from nvlm_trt.recipe import BuildRecipe
    from nvlm_trt.verify.report import VerifyReport


WORK_NAME: Final = ".verify-task.{}.work"
"""Folder in the engine directory of the answers to a task, until all gates are judged."""


def verify(
    engine_dir: Annotated[Path, typer.Argument(help="An engine directory.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Where the checkpoint lies now, if it was moved.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts to compare; default: the recipe's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each; default: the recipe's.")] = None,
    task: Annotated[
        Path | None, typer.Option(help="JSONL of questions and right answers; default: the recipe's.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show the errors of all layers, not only of a failure.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what each layer costs when it is quantised alone.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, no progress.")] = False,
) -> None:
    """Run every gate on an engine directory and show what they say.

    Engines of the gpu target are judged without a GPU: by what their ranks compute in torch. What a build found is in
    verify.json, which stays as it is; --json prints the same of this run. In a directory that cannot be written
    nothing is left: neither answers of a run that was stopped, nor the plot of --sensitivity.

    Exit code 0: every gate passed; 1: one failed.
    """
    from nvlm_trt.cli.output import print_json, print_table
    from nvlm_trt.engine_files import engine_recipe
    from nvlm_trt.environment.threads import let_waiting_threads_sleep
    from nvlm_trt.pipeline.manifest import recorded_checkpoint
    from nvlm_trt.pipeline.progress import reporter_for
    from nvlm_trt.recipe import parse_recipe
    from nvlm_trt.verify.plot import leave_plot
    from nvlm_trt.verify.report import short

    let_waiting_threads_sleep()
    recipe = engine_recipe(engine_dir)
    fields = recipe.model_dump(mode="json")
    asked = {"verify_prompts": prompts, "verify_tokens": tokens}
    fields |= {name: value for name, value in asked.items() if value is not None}
    if task is not None:
        fields["gates"]["task"] = str(task)
    options = {"verify_prompts": "--prompts", "verify_tokens": "--tokens"}
    recipe = parse_recipe(fields, "the recipe with these options", options)
    reporter = reporter_for(silent=quiet or json)
    source = checkpoint or recorded_checkpoint(engine_dir)
    with _held(engine_dir) as writable:
        with _kept_answers(engine_dir, source, recipe, reporter) if writable else nullcontext() as work:
            report = _judge(engine_dir, source, recipe, reporter, work, sensitivity=sensitivity)
        for line in leave_plot(report, engine_dir) if writable else ():
            reporter.line(line)
    if json:
        print_json(report.as_json())
    else:
        print_table(
            ("part", "figure", "value", "limit", "verdict", "why"),
            [
                (
                    check.part,
                    check.gate.figure,
                    short(check.value),
                    f"{check.sign.strip()} {check.gate.limit:g}",
                    "ok" if check.ok else "FAILED",
                    check.gate.reason,
                )
                for check in report.checks
            ],
        )
        for line in [*(report.layer_lines() if layers or sensitivity or not report.ok else []), *report.remarks]:
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _held(engine: Path) -> Iterator[bool]:
    """Keep builds away from an engine directory; tells whether it can be written.

    One that cannot, such as a volume of many servers that is mounted read only, is judged without a lock, and nothing
    is left in it.

    Raises:
        BusyError: a build holds it.
    """
    from nvlm_trt.pipeline.lock import locked

    with ExitStack() as held:
        try:
            held.enter_context(locked(engine, wait=False))
            writable = True
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            writable = False
        yield writable


@contextmanager
def _kept_answers(engine: Path, checkpoint: Path, recipe: BuildRecipe, reporter: Reporter) -> Iterator[Path | None]:
    """Where answers to the recipe's task are kept while gates are judged; None where it has none.

    A run that did not come to its end leaves them to the next one with the same engine, checkpoint, recipe, code and
    tools. The first answer makes the folder, and only a run that came to its end removes those that are there: one that
    is refused leaves everything as it was.

    Raises:
        UserError: the task or the checkpoint cannot be read; nothing was digested for it.
    """
    from nvlm_trt.durable import remove
    from nvlm_trt.engine_files import DECODER_CALIBRATION, ENGINE_FILES, VISION_CALIBRATION
    from nvlm_trt.model.checkpoint import Checkpoint
    from nvlm_trt.pipeline.code_digest import CodeDigests
    from nvlm_trt.pipeline.digest import DigestCache, combined, digest_json
    from nvlm_trt.pipeline.fingerprint import identify, tool_versions
    from nvlm_trt.pipeline.stages.finish import VERIFY_TOOLS
    from nvlm_trt.verify.task import task_samples

    if recipe.gates.task is None:
        yield None
        return
    task_samples(recipe)
    Checkpoint.open(checkpoint)
    cache = DigestCache(engine)
    with reporter.task("digest of the checkpoint") as progress:
        identity = identify(checkpoint, cache, progress)
    answering = (*ENGINE_FILES, VISION_CALIBRATION, DECODER_CALIBRATION)
    basis = {
        "checkpoint": identity.fingerprint,
        "engine": combined(cache.digest_outputs(engine, answering)),
        "recipe": recipe.model_dump(mode="json"),
        "code": CodeDigests(None).digest(["nvlm_trt.verify.engine", "nvlm_trt.verify.trtllm"]),
        "tools": tool_versions(("openvino", *VERIFY_TOOLS)),
    }
    cache.save()
    yield engine / WORK_NAME.format(digest_json(basis)[:16])
    for each in engine.glob(WORK_NAME.format("*")):
        remove(each)


def _judge(
    engine: Path, checkpoint: Path, recipe: BuildRecipe, reporter: Reporter, work: Path | None, *, sensitivity: bool
) -> VerifyReport:
    """The gates of the recipe's target; only those of cpu need OpenVINO."""
    if recipe.target == "cpu":
        from nvlm_trt.verify.engine import verify_engine

        return verify_engine(engine, checkpoint, recipe, log=reporter.line, work=work, sensitivity=sensitivity)
    from nvlm_trt.verify.trtllm import verify_trtllm

    with reporter.task("verify") as progress:
        return verify_trtllm(
            engine, checkpoint, recipe, log=reporter.line, progress=progress, work=work, sensitivity=sensitivity
        )
