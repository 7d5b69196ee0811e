"""The stages that judge an engine directory and make it servable."""

from __future__ import annotations

from nvlm_trt.model.tensors import DECODER_PREFIX
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, lacks
from nvlm_trt.pipeline.stages.decoder import decoder_engine_bytes

REPOSITORY_FOLDER = "triton_repo"


def verify(sources: Sources) -> Stage:
    """Compares what was built with the torch reference; a failing gate stops the build."""
    recipe = sources.recipe

    def run(context: StageContext) -> None:
        from nvlm_trt.verify.engine import verify_engine

        report = verify_engine(context.engine, sources.checkpoint.path, recipe, log=context.log)
        for line in report.lines():
            context.log(line)
        (context.out / "verify.json").write_bytes(report.encoded())
        report.require_ok()

    tensors = sources.checkpoint.tensors.values()
    decoder = sum(info.nbytes for info in tensors if info.name.startswith(DECODER_PREFIX))
    widened = 2 * decoder  # the oracle holds bfloat16 weights as float32
    return Stage(
        name="verify",
        inputs=("inspect", "vision-compile", "decoder-convert", "decoder-compile"),
        outputs=("verify.json",),
        parts={"prompts": recipe.verify_prompts, "tokens": recipe.verify_tokens},
        modules=("nvlm_trt.verify.engine",),
        tools=("openvino", "torch", "numpy", "tokenizers", "Pillow"),
        run=run,
        estimate=Estimate(1 << 20, BASE_BYTES + widened + 2 * decoder_engine_bytes(sources)),
        reads_checkpoint=True,
        lacks=lacks(sources),
    )


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
        lacks=lacks(sources),
        files=tuple(models),
    )
