"""What a stage of the build is: a value that names its inputs, its outputs, and all that its result depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.model.file_writer import Digested
from nvlm_trt.progress import Log, Progress


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stage needs, for the checks that are made before the first byte is written.

    Attributes:
        disk_bytes: Bytes on the disk at most while it runs: of its outputs, and of its work folder.
        memory_bytes: Peak of its resident memory.
        work_bytes: Those of them in its work folder, free again when it is done.
    """

    disk_bytes: int
    memory_bytes: int
    work_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a running stage reads and writes.

    Attributes:
        engine: The engine directory; the outputs of earlier stages lie in it. Read only.
        out: A fresh folder with the layout of the engine directory: the stage writes its outputs here.
        work: A folder of the stage's own that outlives a killed build with the same basis: a long stage keeps there
            what it has done, and goes on from it. Removed when the stage is done, or before it is built anew.
        progress: Told (bytes done, bytes in all).
        log: Told one line for a person.
        digested: Told the digest of a large file below `out` by a stage that computed it while it wrote: such a file
            is not read once more.
    """

    engine: Path
    out: Path
    work: Path
    progress: Progress
    log: Log
    digested: Digested


@dataclass(frozen=True, slots=True)
class Stage:
    """One named step.

    Attributes:
        name: Its name in `--from`, `--until` and the manifest.
        inputs: Names of the stages whose outputs it reads.
        outputs: Files and folders that it leaves, relative to the engine directory.
        parts: Whatever else its result depends on: fields of the recipe, derived figures. JSON values.
        modules: Modules whose code (with all that they import from nvlm_trt) its result depends on.
        tools: Distributions whose version its result depends on.
        run: Writes every output below `StageContext.out`.
        estimated: Works out what it needs. A build in which every stage stands doesn't ask.
        reads_checkpoint: Whether the content of the checkpoint belongs to its fingerprint.
        lacks: Why it cannot run on this machine, in one sentence; None when it can.
        files: Other files of the project that its result depends on.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: Mapping[str, object]
    modules: tuple[str, ...]
    tools: tuple[str, ...]
    run: Callable[[StageContext], None]
    estimated: Callable[[], Estimate] = lambda: Estimate(0, 0)
    reads_checkpoint: bool = False
    lacks: str | None = None
    files: tuple[Path, ...] = ()

    @property
    def estimate(self) -> Estimate:
        """What it needs."""
        return self.estimated()

    def work_name(self, fingerprint: str) -> str:
        """Name of the folder that holds what an unfinished run with this fingerprint has done."""
        return f".{self.name}.{fingerprint[:16]}.work"

    @property
    def partial_name(self) -> str:
        """Name of the folder beside the outputs that holds them while the stage runs."""
        return f".{self.name}.partial"
