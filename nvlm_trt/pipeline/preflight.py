"""Whether what is about to be built fits on the disk and in memory, asked before the first byte is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.environment.memory import memory
from nvlm_trt.errors import DoesNotFitError
from nvlm_trt.pipeline.stage import Stage

DISK_RESERVE_BYTES = 64 << 20
"""Left free beyond the outputs: manifest, file system overhead."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a plan needs beyond what the engine directory holds already.

    Attributes:
        disk_bytes: Peak of additional disk: an old output is only removed when its successor is complete.
        memory_bytes: The largest peak among the stages.
        memory_stage: The stage with that peak.
    """

    disk_bytes: int
    memory_bytes: int
    memory_stage: str


def needs(stages: Sequence[Stage], replaced: Mapping[str, int], begun: Mapping[str, int], freed: int = 0) -> Needs:
    """Sum up the estimates of the stages that will run.

    Args:
        stages: Those that will run, in order.
        replaced: Bytes of the present outputs of each, freed when it is done.
        begun: Bytes of the present work folders of each: it goes on from them, or removes them first.
        freed: Bytes that are removed before the first of them runs.
    """
    used, peak = -freed, 0
    for stage in stages:
        used += stage.estimate.disk_bytes - begun.get(stage.name, 0)
        peak = max(peak, used)
        used -= stage.estimate.work_bytes + replaced.get(stage.name, 0)
    largest = max(stages, key=lambda stage: stage.estimate.memory_bytes, default=None)
    return Needs(peak, largest.estimate.memory_bytes if largest else 0, largest.name if largest else "")


def check_fits(required: Needs, engine: Path) -> None:
    """Compare `required` with the free disk at `engine` (which need not exist yet) and the available memory.

    Raises:
        DoesNotFitError: with bytes needed, bytes available and where.
    """
    place = nearest(engine)
    disk_needed, disk_free = required.disk_bytes + DISK_RESERVE_BYTES, shutil.disk_usage(place).free
    if required.disk_bytes and disk_needed > disk_free:
        raise DoesNotFitError(
            f"the build does not fit on the disk at {place}",
            seen=f"{in_words(disk_free)} free",
            expected=f"{in_words(disk_needed)}",
            fix=f"free {in_words(disk_needed - disk_free)} or give --output on another disk",
        )
    available = memory().available
    if required.memory_bytes > available:
        raise DoesNotFitError(
            f"stage {required.memory_stage} does not fit in memory",
            seen=f"{in_words(available)} available",
            expected=in_words(required.memory_bytes),
            fix="free memory, or build on a larger machine and copy the engine directory",
        )


def nearest(place: Path) -> Path:
    """A folder, or the nearest one above it where it is not there yet."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def in_words(count: int) -> str:
    """Bytes as a person reads them: 1536 -> "1.5 kB"; decimal units, as disks are sold."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
