"""The end of a build: what the gates of `verify` hang on and leave, and the stage that makes a directory servable."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Final

from nvlm_trt.durable import write_atomic
from nvlm_trt.engine_files import REPOSITORY, VERIFY_REPORT
from nvlm_trt.pipeline.manifest import PACKAGE_STAGE
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, leave_report
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.report import VerifyReport

VERIFY_TOOLS: Final = ("torch", "numpy", "tokenizers", "Pillow")
"""Distributions on which the figures of `verify` depend on both targets; on the cpu target also on OpenVINO."""


def gate_parts(recipe: BuildRecipe) -> dict[str, object]:
    """What the verdict of `verify` depends on: the bounds, and the bytes of the task's samples and images.

    Raises:
        UserError: the task cannot be read.
    """
    from nvlm_trt.eval.records import record_key
    from nvlm_trt.verify.task import task_samples

    keys = [[record_key("", sample), sample.answers, sample.metric, sample.choices] for sample in task_samples(recipe)]
    digest = sha256(json.dumps(keys).encode()).hexdigest() if keys else None
    return {"gates": recipe.gates.model_dump(mode="json", exclude={"task"}), "task": digest}


def judge(context: StageContext, report: VerifyReport) -> None:
    """Show every gate and write verify.json; a gate that failed stops the build before anything is packaged.

    A failed stage leaves no outputs. Its report is put into the engine directory all the same, in place of an older
    one: it says what to do.

    Raises:
        VerificationError: naming every gate that failed.
    """
    from nvlm_trt.verify.plot import leave_plot

    if not report.ok:
        write_atomic(context.engine / VERIFY_REPORT, report.encoded())
        for line in leave_plot(report, context.engine):
            context.log(line)
    leave_report(context, report)


def package(sources: Sources) -> Stage:
    """Writes the model repository."""
    from nvlm_trt.serving.package import CHECKOUT_SOURCES, INSTALLED_SOURCES

    recipe = sources.recipe
    models = [path for folder in (INSTALLED_SOURCES, CHECKOUT_SOURCES) for path in sorted(folder.glob("*/model.py"))]

    def run(context: StageContext) -> None:
        from nvlm_trt.serving.package import write_repository

        write_repository(context.engine, folder(context, REPOSITORY), recipe)

    return Stage(
        name=PACKAGE_STAGE,
        inputs=("inspect", "vision-compile", "decoder-compile", "verify"),
        outputs=(REPOSITORY,),
        parts={},
        modules=("nvlm_trt.serving.package",),
        tools=("protobuf", "tritonclient"),
        run=run,
        estimated=lambda: Estimate(16 << 20, BASE_BYTES),
        files=tuple(models),
    )
