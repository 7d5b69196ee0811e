"""Build an engine directory: the function behind `nvlm-trt build`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nvlm_trt import durable
from nvlm_trt.engine_files import MANIFEST
from nvlm_trt.errors import EngineError, UserError
from nvlm_trt.pipeline.code_digest import CodeDigests
from nvlm_trt.pipeline.digest import DigestCache
from nvlm_trt.pipeline.fingerprint import CheckpointIdentity, peek_identity
from nvlm_trt.pipeline.lock import locked
from nvlm_trt.pipeline.manifest import Manifest, load_manifest
from nvlm_trt.pipeline.plan import Decision, Planner, Selection, departed, select
from nvlm_trt.pipeline.progress import Reporter
from nvlm_trt.pipeline.runner import Job, Runner
from nvlm_trt.pipeline.sources import Sources, find_recipe, open_sources
from nvlm_trt.pipeline.stages import build_plan
from nvlm_trt.recipe import load_recipe

ENGINES_FOLDER = Path("engines")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the caller asks for.

    Attributes:
        recipe: Path of a recipe, or the name of one in build/recipes.
        checkpoint: Takes the place of the recipe's checkpoint.
        output: The engine directory; None for engines/<recipe name>.
        selection: Which stages.
        wait: Wait for another build of the same directory instead of refusing.
    """

    recipe: str
    checkpoint: Path | None = None
    output: Path | None = None
    selection: Selection = field(default_factory=Selection)
    wait: bool = False


@dataclass(frozen=True, slots=True)
class PlannedBuild:
    """A request after everything was read and checked, before anything is written."""

    engine: Path
    sources: Sources
    job: Job


def plan_build(request: BuildRequest) -> PlannedBuild:
    """Read the recipe and the checkpoint's headers, and choose the stages.

    Raises:
        UserError: the recipe, the checkpoint, a stage's name or the output directory is at fault.
    """
    path = find_recipe(request.recipe)
    engine = (request.output or ENGINES_FOLDER / load_recipe(path).name).absolute()
    _check_is_ours(engine)
    checkpoint = None if request.checkpoint is None else request.checkpoint.absolute()
    sources = open_sources(path, checkpoint, engine)
    plan = build_plan(sources)
    chosen, forced = select(plan, request.selection)
    command = ["nvlm-trt", "build", str(path.absolute()), "--output", str(engine)]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint)]
    return PlannedBuild(engine, sources, Job(engine, plan, chosen, sources.checkpoint.path, tuple(command), forced))


def dry_run(request: BuildRequest) -> tuple[PlannedBuild, list[Decision]]:
    """What `build` would do and remove, without writing anything and without reading weights.

    Raises:
        UserError: as `plan_build`.
    """
    planned = plan_build(request)
    cache = DigestCache(planned.engine)

    def identity() -> CheckpointIdentity | None:
        directory = planned.job.checkpoint
        return peek_identity(directory, cache) if directory.is_dir() else None

    code = CodeDigests(planned.engine)
    planner = Planner(planned.engine, cache, code, identity, planned.job.forced, read_files=False)
    manifest, job = load_manifest(planned.engine), planned.job
    removals = departed(job.plan, manifest, job.engine, job.checkpoint)
    return planned, [*removals, *planner.plan(job.stages, manifest)]


def build(request: BuildRequest, reporter: Reporter) -> tuple[PlannedBuild, Manifest]:
    """Bring an engine directory up to date.

    A directory that this call made and in which no stage was completed is removed again.

    Raises:
        UserError: as `plan_build`; something does not fit; the directory cannot be written; another build holds it.
        FaultError: a stage failed.
    """
    planned = plan_build(request)
    engine = planned.engine
    with _held(engine, wait=request.wait) as is_new:
        try:
            return planned, Runner(planned.job, load_manifest(engine), reporter).run()
        except Exception:
            if is_new and not any(record.state == "done" for record in load_manifest(engine).stages.values()):
                durable.remove(engine)
            raise


@contextmanager
def _held(engine: Path, *, wait: bool) -> Iterator[bool]:
    """Make an engine directory if there is none, and hold its lock; tells whether it is new.

    Raises:
        UserError: it cannot be made or written; another build holds it and `wait` is False.
    """
    with ExitStack() as held:
        try:
            while True:
                is_new = not engine.exists()
                engine.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(locked(engine, wait=wait, fix="wait for it, or give --wait or another --output"))
                    break
                except FileNotFoundError:  # the build that was waited for removed the directory that it had made
                    if engine.exists():
                        raise
        except OSError as error:
            raise _cannot_write(engine, error) from None
        yield is_new


def _cannot_write(engine: Path, error: OSError) -> UserError:
    return UserError(f"the engine directory cannot be written ({error.strerror})", seen=engine)


def _check_is_ours(engine: Path) -> None:
    """Refuse to build into a folder that holds something else: a build replaces what it finds under its names."""
    try:
        if not engine.exists() or (engine / MANIFEST).is_file():
            return
        is_ours = engine.is_dir() and all(path.name.startswith(".") for path in engine.iterdir())
    except OSError as error:  # a folder on the way, or this one, is nobody's to look into
        raise _cannot_write(engine, error) from None
    if not is_ours:
        raise EngineError(
            "the output holds something that is no engine directory", seen=engine, fix="name an empty or new directory"
        )
