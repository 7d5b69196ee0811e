"""manifest.json of an engine directory: what was built from what, by what, and how long it took.

The file is replaced atomically at every change of a stage's state. A stage in state "running" or "failed" is one whose
outputs are not to be trusted, so a killed build needs no other trace to be resumed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from nvlm_trt.durable import write_atomic
from nvlm_trt.engine_files import MANIFEST, SYNTHETIC_CHECKPOINT
from nvlm_trt.errors import EngineError
from nvlm_trt.parsed import json_value
from nvlm_trt.pipeline.digest import FileDigest, combined

SYNTH_STAGE: Final = "synth"
"""The stage that makes a synthetic checkpoint."""
PACKAGE_STAGE: Final = "package"
"""The stage that writes the model repository; whoever serves it asks for its record."""
FORMAT: Final = 1
"""Raised when a reader of the older layout could misread the newer one."""

State = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage in the manifest.

    Attributes:
        state: Only "done" vouches for the outputs.
        fingerprint: Digest of `basis`.
        basis: All that the result depends on (`fingerprint.stage_basis`).
        places: The files and folders that it writes, whatever its state; empty in the manifest of an older release.
        outputs: Every file that it left, with its size and digest.
        command: The command that runs this stage alone once more.
        started: UTC, ISO 8601.
        seconds: Wall time.
        peak_memory_bytes: Peak resident memory of the process and its children while it ran.
        error: The message, for state "failed".
    """

    state: State
    fingerprint: str
    basis: Mapping[str, Any]
    command: str
    started: str
    places: tuple[str, ...] = ()
    outputs: tuple[FileDigest, ...] = ()
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    error: str | None = None

    @property
    def outputs_digest(self) -> str:
        """One digest over all outputs: what a later stage takes as its input."""
        return combined(self.outputs)

    @property
    def written(self) -> tuple[str, ...]:
        """Where something of it may lie, relative to the engine directory."""
        return self.places or tuple(file.path for file in self.outputs)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The state of an engine directory.

    Attributes:
        checkpoint: `path`, `fingerprint` and `files` of the checkpoint; empty before it was identified.
        tools: Versions of whatever took part.
        stages: Records by stage name, in the order of the build.
    """

    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    def with_stage(self, name: str, record: StageRecord) -> Manifest:
        """A copy in which stage `name` has `record`."""
        return dataclasses.replace(self, stages={**self.stages, name: record})

    def done(self, name: str) -> StageRecord | None:
        """The record of stage `name` if it is done, else None."""
        record = self.stages.get(name)
        return record if record is not None and record.state == "done" else None

    def save(self, engine: Path) -> None:
        """Replace manifest.json of `engine` atomically."""
        body = {"format": FORMAT, **dataclasses.asdict(self)}
        write_atomic(engine / MANIFEST, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode())


def load_manifest(engine: Path) -> Manifest:
    """Read manifest.json; an empty manifest where there is none.

    Raises:
        EngineError: the file is damaged or was written by a newer release.
    """
    path = engine / MANIFEST
    try:
        body = json_value(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise EngineError(
                "the manifest is of another release",
                seen=body["format"],
                expected=FORMAT,
                fix=f"remove {engine} and build",
            )
        stages = {name: _record(raw) for name, raw in body["stages"].items()}
        return Manifest(body["checkpoint"], body["tools"], stages)
    except FileNotFoundError:
        return Manifest()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            "manifest.json cannot be read", seen=f"{path} ({error})", fix=f"remove {engine} and build"
        ) from None


def recorded_checkpoint(engine: Path) -> Path:
    """Where the checkpoint of an engine directory lay when it was built: inside, where the build made it.

    The folder inside counts only while the manifest vouches for it: it moves with the directory, as a path does not.

    Raises:
        EngineError: the manifest cannot be read.
    """
    manifest, made = load_manifest(engine), engine / SYNTHETIC_CHECKPOINT
    return made if manifest.done(SYNTH_STAGE) else Path(str(manifest.checkpoint.get("path", made)))


def _record(raw: Mapping[str, Any]) -> StageRecord:
    outputs = tuple(FileDigest(**file) for file in raw["outputs"])
    return StageRecord(**{**raw, "places": tuple(raw.get("places", ())), "outputs": outputs})
