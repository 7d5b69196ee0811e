"""The stage that makes an engine directory servable."""

from __future__ import annotations

from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder

REPOSITORY_FOLDER = "triton_repo"


def package(sources: Sources) -> Stage:
    """Writes the model repository."""
    from nvlm_trt.serving.package import CHECKOUT_SOURCES, INSTALLED_SOURCES

    recipe = sources.recipe
    models = [path for folder in (INSTALLED_SOURCES, CHECKOUT_SOURCES) for path in sorted(folder.glob("*/model.py"))]

    def run(context: StageContext) -> None:
        from nvlm_trt.serving.package import write_repository

        write_repository(context.engine, folder(context, REPOSITORY_FOLDER), recipe)

    return Stage(
        name="package",
        inputs=("inspect", "vision-compile", "decoder-compile"),
        outputs=(REPOSITORY_FOLDER,),
        parts={},
        modules=("nvlm_trt.serving.package",),
        tools=("protobuf", "tritonclient"),
        run=run,
        estimate=Estimate(16 << 20, BASE_BYTES),
        files=tuple(models),
    )
