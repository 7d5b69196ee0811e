"""The stages of the decoder."""

from __future__ import annotations

from nvlm_trt.decoder.convert import converted_bytes
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, lacks, source_of
from nvlm_trt.recipe import BuildRecipe

STORED_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Values of the TensorRT-LLM checkpoint by decoder precision; every other precision starts from bfloat16."""


def stored_dtype_name(recipe: BuildRecipe) -> str:
    """The dtype of the TensorRT-LLM checkpoint's values."""
    return STORED_DTYPES.get(recipe.decoder_precision, "bfloat16")


def decoder_convert(sources: Sources) -> Stage:
    """Writes the TensorRT-LLM checkpoint."""
    recipe, dtype = sources.recipe, stored_dtype_name(sources.recipe)

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.convert import convert_decoder

        convert_decoder(
            Checkpoint.open(sources.checkpoint.path),
            folder(context, "decoder/checkpoint"),
            tp=recipe.tp,
            pp=recipe.pp,
            dtype=dtype,
            progress=context.progress,
        )

    size = converted_bytes(sources.checkpoint.config, recipe.tp, recipe.pp, dtype)
    return Stage(
        name="decoder-convert",
        inputs=source_of(sources),
        outputs=("decoder/checkpoint",),
        parts={"tp": recipe.tp, "pp": recipe.pp, "dtype": dtype},
        modules=("nvlm_trt.decoder.convert",),
        tools=("torch", "numpy"),
        run=run,
        estimate=Estimate(size, BASE_BYTES),
        reads_checkpoint=True,
    )


def decoder_compile(sources: Sources) -> Stage:
    """Compiles the TensorRT-LLM checkpoint for the target."""
    recipe = sources.recipe
    limits = {
        "precision": recipe.decoder_precision,
        "max_batch_size": recipe.max_batch_size,
        "max_seq_len": sources.max_seq_len,
        "max_prompt_table_rows": sources.max_table_rows,
    }

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.build_cpu import build_decoder_cpu

        build_decoder_cpu(
            context.engine / "decoder" / "checkpoint",
            folder(context, "decoder/cpu"),
            precision=recipe.decoder_precision,
            max_batch_size=recipe.max_batch_size,
            max_seq_len=sources.max_seq_len,
            max_prompt_table_rows=sources.max_table_rows,
            progress=context.progress,
        )

    size = decoder_engine_bytes(sources)
    decoder = sources.checkpoint.config.decoder
    widest = 4 * decoder.vocab_size * decoder.hidden_size  # the embedding in float32
    return Stage(
        name="decoder-compile",
        inputs=("decoder-convert",),
        outputs=("decoder/cpu",) if recipe.target == "cpu" else ("decoder/engine",),
        parts=limits,
        modules=("nvlm_trt.decoder.build_cpu",),
        tools=("openvino", "torch", "numpy"),
        run=run,
        estimate=Estimate(size, BASE_BYTES + size + 2 * widest),
        lacks=lacks(sources),
    )


def decoder_engine_bytes(sources: Sources) -> int:
    """Bytes of the compiled decoder."""
    if sources.recipe.target == "gpu":
        return 0
    from nvlm_trt.decoder.build_cpu import engine_bytes

    return engine_bytes(sources.checkpoint.config.decoder, sources.recipe.decoder_precision)
