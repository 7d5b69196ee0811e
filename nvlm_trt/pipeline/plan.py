"""Which stages a build will run, and why: the part of the pipeline that only reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nvlm_trt.errors import UserError
from nvlm_trt.pipeline.code_digest import CodeDigests
from nvlm_trt.pipeline.digest import DigestCache, entries_below, mark_of
from nvlm_trt.pipeline.fingerprint import CheckpointIdentity, first_difference, stage_basis
from nvlm_trt.pipeline.manifest import Manifest, StageRecord
from nvlm_trt.pipeline.stage import Stage, StageContext

Identity = Callable[[], CheckpointIdentity | None]
"""The checkpoint's identity; None while it is not known."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the caller asked for: the stages up to `until`, those from `redo_from` on (or all: `force`) built anew."""

    until: str | None = None
    redo_from: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one stage, and the reason in words."""

    stage: Stage
    action: Literal["run", "skip", "leave out", "remove"]
    reason: str


def select(stages: Sequence[Stage], selection: Selection) -> tuple[tuple[Stage, ...], frozenset[str]]:
    """The stages of a selection in order, and the names of those that are built anew whatever the manifest says.

    Raises:
        UserError: a name is unknown, or `redo_from` comes after `until`.
    """
    names = [stage.name for stage in stages]
    last = _index(names, selection.until, "--until") if selection.until else len(names) - 1
    first = _index(names, selection.redo_from, "--from") if selection.redo_from else len(names)
    if selection.redo_from and first > last:
        raise UserError("--from comes after --until", seen=f"{selection.redo_from} after {selection.until}")
    forced = names if selection.force else names[first:]
    return tuple(stages[: last + 1]), frozenset(forced)


def _index(names: Sequence[str], name: str, option: str) -> int:
    if name in names:
        return names.index(name)
    close = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {close[0]}?" if close else None
    raise UserError(f"{option} names no stage", seen=name, expected=", ".join(names), fix=fix)


def needed_by(stages: Sequence[Stage], name: str) -> frozenset[str]:
    """The stage `name` and all whose outputs it needs, directly or through others."""
    by_name = {stage.name: stage for stage in stages}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += by_name[current].inputs
    return frozenset(found)


def departed(plan: Sequence[Stage], manifest: Manifest, engine: Path, checkpoint: Path) -> list[Decision]:
    """What earlier builds with another plan left in `engine`: what the manifest knows and no stage of `plan` writes.

    Args:
        plan: All stages of the build, chosen or not.
        manifest: What was built.
        engine: The engine directory.
        checkpoint: What the build reads; it is left alone, even where an earlier build made it.

    Returns:
        One decision for each record that goes, with a stage whose outputs are the files and folders that go with it.
    """
    names, kept = {stage.name for stage in plan}, [output for stage in plan for output in stage.outputs]
    source = checkpoint.resolve()

    def holds_source(place: str) -> bool:
        path = (engine / place).resolve()
        return source.is_relative_to(path) or path.is_relative_to(source)

    decisions = []
    for name, record in manifest.stages.items():
        places = [place for place in record.written if not any(Path(place).is_relative_to(output) for output in kept)]
        if name in names and not places:
            continue
        gone = tuple(place for place in places if not holds_source(place))
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        reason = f"no stage of this build leaves {gone[0]}{more}" if gone else "this build has no such stage"
        decisions.append(Decision(Stage(name, (), gone, {}, (), (), _never), "remove", reason))
    return decisions


def _never(_context: StageContext) -> None:
    raise AssertionError("a stage that is not of this build cannot be run")


class Planner:
    """Decides about stages from the manifest, the files on the disk and the checkpoint.

    Args:
        engine: The engine directory; it may be absent.
        cache: Known digests of files.
        code: Digests of the code.
        identity: The checkpoint's identity.
        forced: Names of stages to build anew.
        read_files: Whether files whose digest is not known are read; False keeps a dry run quick.
    """

    def __init__(
        self,
        engine: Path,
        cache: DigestCache,
        code: CodeDigests,
        identity: Identity,
        forced: Collection[str],
        *,
        read_files: bool,
    ) -> None:
        self._engine, self._cache, self._code, self._identity = engine, cache, code, identity
        self._forced, self._read_files = forced, read_files

    def basis(self, stage: Stage, manifest: Manifest) -> dict[str, object]:
        """All that the result of `stage` depends on, with its inputs as they are recorded."""
        inputs = {name: record.outputs_digest for name in stage.inputs if (record := manifest.done(name)) is not None}
        identity = self._identity() if stage.reads_checkpoint else None
        return stage_basis(stage, inputs, identity.fingerprint if identity else None, self._code)

    def plan(self, stages: Sequence[Stage], manifest: Manifest) -> list[Decision]:
        """Decide about all `stages`, taking it that a stage whose input is built again is built again as well.

        What cannot run here is left out where the last stage does without it, with all that waits for it.
        """
        wanted = needed_by(stages, stages[-1].name)
        decisions: list[Decision] = []
        stale: set[str] = set()
        absent: set[str] = set()
        for stage in stages:
            waits = next((f"it needs {name}" for name in stage.inputs if name in absent), None)
            lacks = stage.lacks or waits
            if lacks is not None and stage.name not in wanted:
                decisions.append(Decision(stage, "leave out", lacks))
                if manifest.done(stage.name) is None:
                    absent.add(stage.name)
                continue
            decision = self.decide(stage, manifest, stale)
            decisions.append(decision)
            if decision.action == "run":
                stale.add(stage.name)
        return decisions

    def decide(self, stage: Stage, manifest: Manifest, stale: Collection[str] = ()) -> Decision:
        """Decide about one stage; `stale` names the inputs that are known to change."""
        reason = self._why_run(stage, manifest, stale)
        return Decision(stage, "run", reason) if reason else Decision(stage, "skip", "its fingerprint stands")

    def _why_run(self, stage: Stage, manifest: Manifest, stale: Collection[str]) -> str | None:
        if stage.name in self._forced:
            return "asked for"
        record = manifest.stages.get(stage.name)
        if record is None:
            return "not built yet"
        if record.state == "running":
            return "an earlier build was stopped in it"
        if record.state == "failed":
            return "it failed earlier"
        changing = next((name for name in stage.inputs if name in stale), None)
        if changing is not None:
            return f"{changing} is built again"
        if stage.reads_checkpoint and self._identity() is None:
            return "files of the checkpoint changed on the disk; their digests will decide"
        return first_difference(record.basis, self.basis(stage, manifest)) or self._damage(stage, record)

    def _damage(self, stage: Stage, record: StageRecord) -> str | None:
        """In words, the first output that is not as it was recorded."""
        expected = {file.path: file for file in record.outputs}
        present = set(entries_below(self._engine, stage.outputs))
        if missing := sorted(expected.keys() - present):
            return f"{missing[0]} is missing"
        if extra := sorted(present - expected.keys()):
            return f"{extra[0]} is not one of its outputs"
        for name, file in expected.items():
            path = self._engine / name
            mark = mark_of(self._engine, name)
            if mark is None and path.stat().st_size != file.size:
                return f"{name} has another size"
            if mark is not None:
                digest: str | None = mark.sha256
            else:
                digest = self._cache.digest(path) if self._read_files else self._cache.peek(path)
            if digest is None:
                return f"{name} changed on the disk; its digest will decide"
            if digest != file.sha256:
                return f"{name} has other content"
        return None
