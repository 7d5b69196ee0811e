"""The stage that exports the vision encoder; both targets compile the graph that it leaves."""

from __future__ import annotations

from nvlm_trt.engine_files import VISION, VISION_CALIBRATION, VISION_EXPORT
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.calibrate import vision_quantization
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, source_of
from nvlm_trt.recipe import BuildRecipe


def export_precision(recipe: BuildRecipe) -> str:
    """The precision of the ONNX graph: quantised engines start from the bf16 graph."""
    return "fp32" if recipe.vision_precision == "fp32" else "bf16"


def vision_export(sources: Sources) -> Stage:
    """Writes the ONNX graph of encoder and projector."""
    precision, table = export_precision(sources.recipe), sources.recipe.table_precision
    kind = vision_quantization(sources.recipe)

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.export import export_vision
        from nvlm_trt.vision.scales import CPU_WEIGHT_LIMIT, VisionScales

        checkpoint = Checkpoint.open(sources.checkpoint.path)
        calibration = context.engine / VISION_CALIBRATION
        limit = CPU_WEIGHT_LIMIT if sources.recipe.target == "cpu" else None
        scales = VisionScales.load(calibration, kind, checkpoint.config, weight_limit=limit) if kind else None
        export_vision(
            checkpoint,
            folder(context, VISION),
            precision=precision,
            output_dtype=table,
            quantization=scales,
            progress=context.progress,
            digested=context.digested,
        )

    return Stage(
        name="vision-export",
        inputs=source_of(sources) if kind is None else (*source_of(sources), "vision-calibrate"),
        outputs=VISION_EXPORT,
        parts={"precision": precision, "table": table, "quantization": kind},
        modules=("nvlm_trt.vision.export",),
        tools=("onnx", "torch", "numpy", "ml_dtypes"),
        run=run,
        estimated=lambda: Estimate(exported_bytes(sources), BASE_BYTES),
        reads_checkpoint=True,
    )


def exported_bytes(sources: Sources) -> int:
    """Bytes of the ONNX graph and its weights."""
    from nvlm_trt.vision.export import vision_export_bytes

    recipe = sources.recipe
    return vision_export_bytes(sources.checkpoint, export_precision(recipe), vision_quantization(recipe))
