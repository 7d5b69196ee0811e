"""The stages of the vision encoder."""

from __future__ import annotations

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, lacks, source_of
from nvlm_trt.recipe import BuildRecipe


def export_precision(recipe: BuildRecipe) -> str:
    """The precision of the ONNX graph: quantised engines start from the bf16 graph."""
    return "fp32" if recipe.vision_precision == "fp32" else "bf16"


def table_precision(recipe: BuildRecipe) -> str:
    """The type of the prompt table as it leaves the ONNX graph: the one that the decoder takes.

    TensorRT-LLM demands its engine's own type; the cpu decoder takes float32 in every precision.
    """
    if recipe.target == "cpu":
        return "fp32"
    return "fp16" if recipe.decoder_precision == "fp16" else "bf16"


def vision_export(sources: Sources) -> Stage:
    """Writes the ONNX graph of encoder and projector."""
    from nvlm_trt.vision.export import vision_export_bytes

    precision, table = export_precision(sources.recipe), table_precision(sources.recipe)

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.export import export_vision

        checkpoint = Checkpoint.open(sources.checkpoint.path)
        export_vision(
            checkpoint,
            folder(context, "vision"),
            precision=precision,
            output_dtype=table,
            progress=context.progress,
        )

    return Stage(
        name="vision-export",
        inputs=source_of(sources),
        outputs=("vision/vision.onnx", "vision/vision.onnx.data", "vision/config.json"),
        parts={"precision": precision, "table": table},
        modules=("nvlm_trt.vision.export",),
        tools=("onnx", "torch", "numpy", "ml_dtypes"),
        run=run,
        estimate=Estimate(vision_export_bytes(sources.checkpoint, precision), BASE_BYTES),
        reads_checkpoint=True,
    )


def vision_compile(sources: Sources) -> Stage:
    """Compiles the graph for the target."""
    from nvlm_trt.vision.export import vision_export_bytes

    precision = sources.recipe.vision_precision

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.build_cpu import build_vision_cpu

        onnx = context.engine / "vision" / "vision.onnx"
        build_vision_cpu(onnx, folder(context, "vision/cpu"), precision=precision, progress=context.progress)

    size = vision_export_bytes(sources.checkpoint, export_precision(sources.recipe))
    return Stage(
        name="vision-compile",
        inputs=("vision-export",),
        outputs=("vision/cpu",) if sources.recipe.target == "cpu" else ("vision/model.plan",),
        parts={"precision": precision},
        modules=("nvlm_trt.vision.build_cpu",),
        tools=("openvino",),
        run=run,
        estimate=Estimate(size, BASE_BYTES + size * 5 // 4),
        lacks=lacks(sources),
    )
