"""What several stages share."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.engine_files import VERIFY_REPORT
from nvlm_trt.pipeline.manifest import SYNTH_STAGE
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import StageContext
from nvlm_trt.verify.report import VerifyReport

BASE_BYTES = 600 << 20
"""Resident memory of the process with torch and OpenVINO loaded, and of the blocks that are streamed through it."""


def source_of(sources: Sources) -> tuple[str, ...]:
    """The stage that makes the checkpoint, as an input of those that read it."""
    return () if sources.synthetic is None else (SYNTH_STAGE,)


def folder(context: StageContext, name: str) -> Path:
    """A folder of that name among the stage's outputs, made."""
    made = context.out / name
    made.mkdir(parents=True)
    return made


def leave_report(context: StageContext, report: VerifyReport) -> None:
    """Show every gate and write verify.json; a gate that failed stops the build.

    Raises:
        VerificationError: naming every gate that failed.
    """
    for line in report.lines():
        context.log(line)
    (context.out / VERIFY_REPORT).write_bytes(report.encoded())
    report.require_ok()
