"""Runs the stages of a plan: each writes beside its place, is flushed, renamed, digested, and noted in the manifest.

A build that is killed leaves at most (1) a `.<stage>.partial` folder, (2) a stage in state "running" whose old outputs
may be partly replaced. The next build removes the first and runs the second again; every other stage stands. Because a
stage is a function of its basis alone, the result is the one that an undisturbed build leaves.

What an earlier build with another plan left is removed before the first stage runs, and forgotten after that: a build
that is killed in between leaves records of what is gone, which the next one forgets, and no files that nobody knows.
"""

from __future__ import annotations

import dataclasses
import errno
import platform
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nvlm_trt import __version__, durable
from nvlm_trt.errors import BuildError, CheckpointError, DoesNotFitError, NvlmTrtError, UserError
from nvlm_trt.pipeline.code_digest import CodeDigests
from nvlm_trt.pipeline.digest import DigestCache, FileDigest, WrittenDigests, entries_below
from nvlm_trt.pipeline.fingerprint import CheckpointIdentity, fingerprint, identify, peek_identity
from nvlm_trt.pipeline.manifest import Manifest, StageRecord
from nvlm_trt.pipeline.memory import PeakMemory
from nvlm_trt.pipeline.plan import Decision, Planner, departed
from nvlm_trt.pipeline.preflight import check_fits, in_words, needs
from nvlm_trt.pipeline.progress import Reporter
from nvlm_trt.pipeline.stage import Stage, StageContext


@dataclass(frozen=True, slots=True)
class Job:
    """What one call of the runner works on.

    Attributes:
        engine: The engine directory; it exists and its lock is held.
        plan: All stages of the build in order.
        stages: Those of them that were chosen.
        checkpoint: The checkpoint directory; a synthetic one appears when its stage has run.
        command: The command line of this build without --from and --until, as words.
        forced: Names of stages that are built anew.
    """

    engine: Path
    plan: Sequence[Stage]
    stages: Sequence[Stage]
    checkpoint: Path
    command: Sequence[str]
    forced: frozenset[str]


class Runner:
    """Brings an engine directory up to date."""

    def __init__(self, job: Job, manifest: Manifest, reporter: Reporter) -> None:
        self._job, self._manifest, self._reporter = job, manifest, reporter
        self._cache = DigestCache(job.engine)
        self._code = CodeDigests(job.engine)
        self._planner = Planner(job.engine, self._cache, self._code, self._identity, job.forced, read_files=True)

    def run(self) -> Manifest:
        """Run what must be run and return the manifest as it then is.

        Raises:
            UserError: a stage cannot run here, does not fit, or the checkpoint is at fault.
            BuildError: a stage failed.
        """
        self._clean_leftovers()
        job = self._job
        removals = departed(job.plan, self._manifest, job.engine, job.checkpoint)
        decisions = self._planner.plan(job.stages, self._manifest)
        self._refuse_early(removals, decisions)
        self._remove(removals)
        count = len(decisions)
        try:
            for number, decision in enumerate(decisions, start=1):
                label = f"[{number}/{count}] {decision.stage.name}"
                if decision.action == "leave out":
                    self._reporter.line(f"{label}: left out ({decision.reason})")
                    continue
                now = self._planner.decide(decision.stage, self._manifest)
                if now.action == "skip":
                    self._reporter.line(f"{label}: stands")
                else:
                    try:
                        self._run_stage(now.stage, label, now.reason)
                    except OSError as error:  # of the manifest: the disk is full before the stage, or after it
                        raise _as_told(now.stage, error) from error
        finally:
            with suppress(OSError):  # of a full disk: what is not kept is computed again
                self._cache.save()
                self._code.save()
        return self._manifest

    def _clean_leftovers(self) -> None:
        for leftover in self._job.engine.glob(".*.partial"):
            durable.remove(leftover)
        for leftover in self._job.engine.glob(".*.tmp"):
            durable.remove(leftover)

    def _remove(self, removals: Sequence[Decision]) -> None:
        """Remove what an earlier plan left, then the records of it."""
        engine = self._job.engine
        for removal in removals:
            for path in (*self._works_of(removal.stage), *(engine / output for output in removal.stage.outputs)):
                durable.remove(path)
                if path.parent.is_dir():
                    durable.sync_folder(path.parent)
            self._reporter.line(f"{removal.stage.name}: removed ({removal.reason})")
        if removals:
            gone = {removal.stage.name for removal in removals}
            stages = {name: record for name, record in self._manifest.stages.items() if name not in gone}
            self._save(dataclasses.replace(self._manifest, stages=stages))

    def _refuse_early(self, removals: Sequence[Decision], decisions: Sequence[Decision]) -> None:
        running = [decision.stage for decision in decisions if decision.action == "run"]
        for stage in running:
            if stage.lacks is not None:
                raise UserError(f"stage {stage.name} cannot run here: {stage.lacks}")
        replaced = {stage.name: self._bytes_of(stage.outputs) for stage in running}
        begun = {stage.name: self._bytes_of(path.name for path in self._works_of(stage)) for stage in running}
        freed = sum(self._bytes_of(removal.stage.outputs) for removal in removals)
        check_fits(needs(running, replaced, begun, freed), self._job.engine)

    def _works_of(self, stage: Stage) -> list[Path]:
        """The stage's work folders, whatever their fingerprints."""
        return sorted(self._job.engine.glob(stage.work_name("*")))

    def _bytes_of(self, names: Iterable[str]) -> int:
        engine = self._job.engine
        return sum((engine / name).lstat().st_size for name in entries_below(engine, names))

    def _identity(self) -> CheckpointIdentity | None:
        """The checkpoint's identity; every file of it is read the first time."""
        directory = self._job.checkpoint
        if not directory.is_dir():
            return None
        known = peek_identity(directory, self._cache)
        if known is not None:
            return known
        with self._reporter.task("digest of the checkpoint") as progress:
            identity = identify(directory, self._cache, progress)
        self._cache.save()
        return identity

    def _run_stage(self, stage: Stage, label: str, reason: str) -> None:
        self._reporter.line(f"{label}: {reason}")
        basis = self._planner.basis(stage, self._manifest)
        self._note_checkpoint(stage)
        record = StageRecord(
            state="running",
            fingerprint=fingerprint(basis),
            basis=basis,
            command=self._command_of(stage),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            places=stage.outputs,
        )
        self._note(stage, record)  # from here on the old outputs are not trusted any more
        started = time.monotonic()
        partial = self._job.engine / stage.partial_name
        work = self._open_work(stage, record.fingerprint)
        written = WrittenDigests()
        try:
            with PeakMemory() as memory, self._reporter.task(label) as progress:
                partial.mkdir()
                line = self._reporter.line
                stage.run(StageContext(self._job.engine, partial, work, progress, line, written.note))
            self._check_unchanged(stage, basis)
            outputs = self._promote(stage, partial, written)
        except Exception as error:
            durable.remove(partial)
            failed = dataclasses.replace(record, state="failed", error=str(error), seconds=time.monotonic() - started)
            with suppress(OSError):  # of a full disk: the record of a stage that runs is trusted as little
                self._note(stage, failed)
            raise _as_told(stage, error) from error
        seconds = time.monotonic() - started
        done = dataclasses.replace(
            record, state="done", outputs=outputs, seconds=round(seconds, 3), peak_memory_bytes=memory.peak_bytes
        )
        self._note(stage, done)
        durable.remove(work)
        self._cache.save()
        size = sum(file.size for file in outputs)
        self._reporter.line(
            f"{label}: done in {seconds:.1f} s, {in_words(size)}, peak memory {in_words(memory.peak_bytes)}"
        )

    def _open_work(self, stage: Stage, current: str) -> Path:
        """The stage's work folder for this fingerprint; those of others, and of a stage built anew, are removed."""
        work = self._job.engine / stage.work_name(current)
        for other in self._works_of(stage):
            if other != work or stage.name in self._job.forced:
                durable.remove(other)
        work.mkdir(exist_ok=True)
        return work

    def _note(self, stage: Stage, record: StageRecord) -> None:
        self._save(self._manifest.with_stage(stage.name, record))

    def _save(self, manifest: Manifest) -> None:
        """Save a manifest with the tools of all its stages, and go on from it."""
        tools = {"nvlm-trt": __version__, "python": platform.python_version()}
        for record in manifest.stages.values():
            tools.update(record.basis["tools"])
        self._manifest = dataclasses.replace(manifest, tools=tools)
        self._manifest.save(self._job.engine)

    def _note_checkpoint(self, stage: Stage) -> None:
        """Take down which checkpoint takes part; saved with the next record."""
        identity = self._identity() if stage.reads_checkpoint else None
        if identity is not None:
            files = [dataclasses.asdict(file) for file in identity.files]
            checkpoint = {"path": str(self._job.checkpoint), "fingerprint": identity.fingerprint, "files": files}
            self._manifest = dataclasses.replace(self._manifest, checkpoint=checkpoint)

    def _check_unchanged(self, stage: Stage, basis: dict[str, object]) -> None:
        if not stage.reads_checkpoint:
            return
        identity = self._identity()
        if identity is None or identity.fingerprint != basis["checkpoint"]:
            raise CheckpointError(
                "the checkpoint was changed while it was being read", seen=self._job.checkpoint, fix="build again"
            )

    def _promote(self, stage: Stage, partial: Path, written: WrittenDigests) -> tuple[FileDigest, ...]:
        """Flush the finished outputs, move them to their places and digest there what was not digested on its way."""
        for output in stage.outputs:
            if not (partial / output).exists():
                raise BuildError(f"stage {stage.name} left no {output}")
        durable.sync_tree(partial)
        for output in stage.outputs:
            durable.move_into_place(partial / output, self._job.engine / output)
        durable.remove(partial)
        written.hand_over(self._cache, partial, self._job.engine)
        return self._cache.digest_outputs(self._job.engine, stage.outputs)

    def _command_of(self, stage: Stage) -> str:
        return shlex.join([*self._job.command, "--from", stage.name, "--until", stage.name])


def _as_told(stage: Stage, error: Exception) -> NvlmTrtError:
    """The error that the caller is told about."""
    if isinstance(error, NvlmTrtError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DoesNotFitError(f"the disk became full in stage {stage.name}", fix="free space and build again")
    return BuildError(f"stage {stage.name} failed: {type(error).__name__}: {error}")
