"""What building the engines takes: disk and host memory by the stages' own estimates, time at the disk's speed."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_trt.errors import RecipeError
from nvlm_trt.model.tensors import DECODER_PREFIX, PROJECTOR_PREFIX, VISION_PREFIX
from nvlm_trt.pipeline.preflight import needs
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Stage
from nvlm_trt.pipeline.stages import build_plan

STREAMED: dict[str, tuple[str, ...]] = {
    "inspect": (),
    "vision-export": (VISION_PREFIX, PROJECTOR_PREFIX),
    "decoder-convert": (DECODER_PREFIX,),
    "package": (),
}
"""Stages that copy or cast as fast as the disk allows, and which tensors of the checkpoint they read.

All others compute: compiling with TensorRT, calibrating, comparing. How long they take is not known before somebody
measures it, and is not guessed here.
"""

DIGEST = "checkpoint digest"
"""The first build of a checkpoint reads it whole, for the fingerprints of its stages."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage takes.

    Attributes:
        name: The stage.
        read_bytes: Of the checkpoint; None where that is not known.
        disk_bytes: Of its outputs, and of its work folder while it runs; None where the stage has no estimate.
        memory_bytes: Peak of host memory; None where the stage has no estimate.
        seconds: At the disk's speed, if nothing else holds it up; None: unknown until measured.
    """

    name: str
    read_bytes: int | None
    disk_bytes: int | None
    memory_bytes: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class BuildCosts:
    """What a build takes.

    Attributes:
        disk_rate: Bytes a second that are read or written, an assumption.
        stages: In the order in which they run; empty where they cannot be known.
        disk_bytes: At most at a time, by the stages that have estimates.
        unknown: Why they cannot be known, in one sentence.
    """

    disk_rate: float
    stages: tuple[StageCost, ...]
    disk_bytes: int = 0
    unknown: str | None = None


def build_costs(sources: Sources, disk_rate: float) -> BuildCosts:
    """What a build of these sources takes, by the estimates with which the build itself checks disk and memory.

    Args:
        sources: The recipe and the headers of its checkpoint.
        disk_rate: Bytes a second that the disk reads or writes.
    """
    try:
        stages = build_plan(sources)
        costs = [_cost(stage, sources, disk_rate) for stage in stages]  # asks for their estimates
    except ModuleNotFoundError as error:
        return BuildCosts(disk_rate, (), unknown=f"the stages need {error.name}: install nvlm-trt with the extra gpu")
    except RecipeError as error:
        return BuildCosts(disk_rate, (), unknown=str(error))
    whole = sources.checkpoint.nbytes
    digest = StageCost(DIGEST, whole, 0, None, whole / disk_rate)
    return BuildCosts(disk_rate, (digest, *costs), needs(stages, {}, {}).disk_bytes)


def _cost(stage: Stage, sources: Sources, disk_rate: float) -> StageCost:
    disk, memory = stage.estimate.disk_bytes or None, stage.estimate.memory_bytes or None
    if stage.name not in STREAMED:
        return StageCost(stage.name, None, disk, memory, None)
    prefixes = STREAMED[stage.name]
    tensors = sources.checkpoint.tensors.values()
    read = sum(info.nbytes for info in tensors if info.name.startswith(prefixes)) if prefixes else 0
    return StageCost(stage.name, read, disk, memory, (read + (disk or 0)) / disk_rate)
