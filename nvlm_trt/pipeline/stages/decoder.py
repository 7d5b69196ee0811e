"""The stage that converts the decoder; both targets compile the TensorRT-LLM checkpoint that it leaves."""

from __future__ import annotations

from nvlm_trt.decoder.convert import converted_bytes
from nvlm_trt.decoder.precision import STORED_DTYPES, Precision
from nvlm_trt.decoder.trtllm_layout import check_parallelism
from nvlm_trt.engine_files import DECODER_CALIBRATION, DECODER_CHECKPOINT
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.calibrate import needs_decoder_calibration
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, source_of

CPU_DTYPES = {"fp32": "float32"}
"""Values of the checkpoint by decoder precision of the cpu target; every other one starts from bfloat16."""


def stored_precision(sources: Sources) -> Precision:
    """How the checkpoint is stored. The cpu target quantises when it compiles."""
    if sources.recipe.target == "gpu":
        return sources.precision
    return Precision(STORED_DTYPES[CPU_DTYPES.get(sources.recipe.decoder_precision, "bfloat16")])


def decoder_convert(sources: Sources) -> Stage:
    """Writes the TensorRT-LLM checkpoint.

    Raises:
        RecipeError: the decoder cannot be split as the recipe asks.
    """
    recipe = sources.recipe
    precision, calibrated = stored_precision(sources), needs_decoder_calibration(sources)
    check_parallelism(sources.checkpoint.config.decoder, recipe.tp, recipe.pp, precision)

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.convert import convert_decoder

        convert_decoder(
            Checkpoint.open(sources.checkpoint.path),
            folder(context, DECODER_CHECKPOINT),
            tp=recipe.tp,
            pp=recipe.pp,
            gpus_per_node=recipe.gpus_per_node,
            precision=precision,
            calibration=context.engine / DECODER_CALIBRATION if calibrated else None,
            progress=context.progress,
            digested=context.digested,
        )

    parts = {
        "tp": recipe.tp,
        "pp": recipe.pp,
        "gpus_per_node": recipe.gpus_per_node,
        "dtype": precision.dtype.name,
        "quantization": precision.quantization.to_dict(),
    }
    return Stage(
        name="decoder-convert",
        inputs=(*source_of(sources), "decoder-calibrate") if calibrated else source_of(sources),
        outputs=(DECODER_CHECKPOINT,),
        parts=parts,
        modules=("nvlm_trt.decoder.convert",),
        tools=("torch", "numpy"),
        run=run,
        estimated=lambda: Estimate(stored_bytes(sources), BASE_BYTES),
        reads_checkpoint=True,
    )


def stored_bytes(sources: Sources) -> int:
    """Bytes of the TensorRT-LLM checkpoint, all ranks together."""
    recipe = sources.recipe
    return converted_bytes(sources.checkpoint.config, recipe.tp, recipe.pp, stored_precision(sources))
