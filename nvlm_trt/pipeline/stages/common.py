"""What several stages share."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import StageContext

BASE_BYTES = 600 << 20
"""Resident memory of the process with torch and OpenVINO loaded, and of the blocks that are streamed through it."""


def source_of(sources: Sources) -> tuple[str, ...]:
    """The stage that makes the checkpoint, as an input of those that read it."""
    return () if sources.synthetic is None else ("synth",)


def folder(context: StageContext, name: str) -> Path:
    """A folder of that name among the stage's outputs, made."""
    made = context.out / name
    made.mkdir(parents=True)
    return made
