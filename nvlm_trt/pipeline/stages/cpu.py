"""The stages of the cpu target: OpenVINO compiles both parts, and the engines are compared with the torch reference."""

from __future__ import annotations

from nvlm_trt.engine_files import DECODER_CHECKPOINT, DECODER_CPU, VERIFY_REPORT, VISION_CPU, VISION_GRAPH
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.calibrate import vision_quantization
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder
from nvlm_trt.pipeline.stages.finish import VERIFY_TOOLS, gate_parts, judge
from nvlm_trt.pipeline.stages.vision import exported_bytes


def vision_compile(sources: Sources) -> Stage:
    """Compiles the graph with OpenVINO."""
    precision = sources.recipe.vision_precision

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.build_cpu import build_vision_cpu

        onnx = context.engine / VISION_GRAPH
        build_vision_cpu(onnx, folder(context, VISION_CPU), precision=precision, progress=context.progress)

    def estimated() -> Estimate:
        size = exported_bytes(sources)
        return Estimate(size, BASE_BYTES + size * 5 // 4)

    return Stage(
        name="vision-compile",
        inputs=("vision-export",),
        outputs=(VISION_CPU,),
        parts={"precision": precision},
        modules=("nvlm_trt.vision.build_cpu",),
        tools=("openvino",),
        run=run,
        estimated=estimated,
    )


def decoder_compile(sources: Sources) -> Stage:
    """Compiles the TensorRT-LLM checkpoint with OpenVINO."""
    recipe = sources.recipe
    limits = {
        "precision": recipe.decoder_precision,
        "max_batch_size": recipe.max_batch_size,
        "max_seq_len": sources.max_seq_len,
        "max_prompt_table_rows": sources.max_table_rows,
        "exclude_layers": sorted(recipe.exclude_layers),
    }

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.build_cpu import build_decoder_cpu

        build_decoder_cpu(
            context.engine / DECODER_CHECKPOINT,
            folder(context, DECODER_CPU),
            precision=recipe.decoder_precision,
            max_batch_size=recipe.max_batch_size,
            max_seq_len=sources.max_seq_len,
            max_prompt_table_rows=sources.max_table_rows,
            exclude=recipe.exclude_layers,
            progress=context.progress,
        )

    def estimated() -> Estimate:
        size = _engine_bytes(sources)
        decoder = sources.checkpoint.config.decoder
        widest = 4 * decoder.vocab_size * decoder.hidden_size  # the embedding in float32
        return Estimate(size, BASE_BYTES + size + 2 * widest)

    return Stage(
        name="decoder-compile",
        inputs=("decoder-convert",),
        outputs=(DECODER_CPU,),
        parts=limits,
        modules=("nvlm_trt.decoder.build_cpu",),
        tools=("openvino", "torch", "numpy"),
        run=run,
        estimated=estimated,
    )


def verify(sources: Sources) -> Stage:
    """Compares what was built with the torch reference; a failing gate stops the build."""
    recipe = sources.recipe
    calibrated = [] if vision_quantization(recipe) is None else ["vision-calibrate"]

    def run(context: StageContext) -> None:
        from nvlm_trt.verify.engine import verify_engine

        report = verify_engine(context.engine, sources.checkpoint.path, recipe, log=context.log, work=context.work)
        judge(context, report)

    widened = 2 * sum(info.nbytes for info in sources.checkpoint.tensors.values())  # bfloat16 as float32 in the oracle
    return Stage(
        name="verify",
        inputs=("inspect", *calibrated, "vision-compile", "decoder-convert", "decoder-compile"),
        outputs=(VERIFY_REPORT,),
        parts={"prompts": recipe.verify_prompts, "tokens": recipe.verify_tokens, **gate_parts(recipe)},
        modules=("nvlm_trt.verify.engine",),
        tools=("openvino", *VERIFY_TOOLS),
        run=run,
        estimated=lambda: Estimate(1 << 20, BASE_BYTES + widened + 2 * _engine_bytes(sources)),
        reads_checkpoint=True,
    )


def _engine_bytes(sources: Sources) -> int:
    from nvlm_trt.decoder.build_cpu import engine_bytes

    recipe = sources.recipe
    return engine_bytes(sources.checkpoint.config.decoder, recipe.decoder_precision, recipe.exclude_layers)
