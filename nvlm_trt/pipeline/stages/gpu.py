"""The stages of the gpu target: TensorRT compiles the vision encoder, TensorRT-LLM the decoder.

They run inside the pinned image, on a GPU of the model that the engines are for. What a machine without one can check
of them, `verify` checks: the ranks of the decoder are run one by one in torch, in the arithmetic of their precision.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from nvlm_trt.decoder.trtllm_build_command import HOST_COPIES, PROGRAM, engine_settings, refuse, workers_that_fit
from nvlm_trt.engine_files import DECODER_CHECKPOINT, DECODER_ENGINE, PLAN_NAME, VERIFY_REPORT, VISION, VISION_GRAPH
from nvlm_trt.environment.built_with import BUILT_WITH, BuiltWith, HardwareCompatibility
from nvlm_trt.environment.gpus import find_gpus
from nvlm_trt.environment.memory import memory
from nvlm_trt.environment.seen import look
from nvlm_trt.environment.versions import PINNED_IMAGE, check_versions
from nvlm_trt.errors import EngineError, RecipeError, listed
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.calibrate import vision_quantization
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder
from nvlm_trt.pipeline.stages.decoder import stored_bytes
from nvlm_trt.pipeline.stages.finish import VERIFY_TOOLS, gate_parts, judge
from nvlm_trt.pipeline.stages.vision import exported_bytes

VISION_FILES = (PLAN_NAME, "engine.json", "inspector.json", "build.log", BUILT_WITH)


def vision_compile(sources: Sources) -> Stage:
    """Builds the vision engine with TensorRT."""
    from nvlm_trt.vision.build_tensorrt import vision_settings

    settings = vision_settings(
        sources.recipe, tiles_per_image=sources.tiles_per_image, tiles_per_request=sources.tiles_per_request
    )

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.build_tensorrt import build_vision_tensorrt

        _check_machine(sources)
        build_vision_tensorrt(
            context.engine / VISION_GRAPH,
            folder(context, VISION),
            settings=settings,
            timing_cache=_timing_cache(context, "vision"),
            log=context.log,
            progress=context.progress,
        )
        compatibility = sources.recipe.vision_engine.hardware_compatibility
        _record(context.out / VISION, BuiltWith.of(look(), tensorrt_llm=False, hardware_compatibility=compatibility))

    def estimated() -> Estimate:
        size = exported_bytes(sources)
        return Estimate(size, BASE_BYTES + HOST_COPIES * size)

    return Stage(
        name="vision-compile",
        inputs=("vision-export",),
        outputs=tuple(f"{VISION}/{name}" for name in VISION_FILES),
        parts=dataclasses.asdict(settings) | _built_for(settings.hardware_compatibility),
        modules=("nvlm_trt.vision.build_tensorrt",),
        tools=("tensorrt",),
        run=run,
        estimated=estimated,
        lacks=None if find_spec("tensorrt") else f"it needs TensorRT and a GPU: run it inside {PINNED_IMAGE}",
    )


def decoder_compile(sources: Sources) -> Stage:
    """Builds the decoder's engines with trtllm-build, one a rank."""
    recipe, decoder, precision = sources.recipe, sources.checkpoint.config.decoder, sources.precision
    refuse(recipe, decoder, precision)
    _refuse_gpu(sources)
    settings = engine_settings(
        recipe, decoder, precision, max_seq_len=sources.max_seq_len, max_table_rows=sources.max_table_rows
    )
    ranks = recipe.tp * recipe.pp
    rank_bytes = stored_bytes(sources) // ranks
    at_once = min(recipe.decoder_engine.workers or 1, ranks)

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.build_tensorrt_llm import build_decoder_tensorrt_llm
        from nvlm_trt.vision.description import VisionDescription

        _check_machine(sources)
        gpus = len(look().gpus.gpus)
        available = memory().available
        workers = recipe.decoder_engine.workers or workers_that_fit(rank_bytes, available, ranks, gpus)
        build_decoder_tensorrt_llm(
            context.engine / DECODER_CHECKPOINT,
            folder(context, DECODER_ENGINE),
            settings=settings,
            workers=workers,
            timing_cache=_timing_cache(context, "decoder"),
            work_dir=context.work,
            log=context.log,
            progress=context.progress,
            table_dtype=VisionDescription.load(context.engine / VISION).output.dtype,
        )
        _record(context.out / DECODER_ENGINE, BuiltWith.of(look(), tensorrt_llm=True))

    return Stage(
        name="decoder-compile",
        inputs=("vision-export", "decoder-convert"),
        outputs=(DECODER_ENGINE,),
        parts=dataclasses.asdict(settings) | _built_for("none"),
        modules=("nvlm_trt.decoder.build_tensorrt_llm",),
        tools=("tensorrt_llm", "tensorrt"),
        run=run,
        estimated=lambda: Estimate(rank_bytes * ranks, BASE_BYTES + HOST_COPIES * rank_bytes * at_once),
        lacks=None
        if shutil.which(PROGRAM)
        else f"it needs {PROGRAM} of TensorRT-LLM 1.2 and a GPU: run it inside {PINNED_IMAGE}",
    )


def verify(sources: Sources) -> Stage:
    """Checks prompts and every rank, and emulates vision and the ranks together; a failing gate stops the build."""
    recipe = sources.recipe
    calibrated = [] if vision_quantization(recipe) is None else ["vision-calibrate"]

    def run(context: StageContext) -> None:
        from nvlm_trt.verify.trtllm import verify_trtllm

        report = verify_trtllm(
            context.engine,
            sources.checkpoint.path,
            recipe,
            log=context.log,
            progress=context.progress,
            work=context.work,
        )
        judge(context, report)

    def estimated() -> Estimate:
        from nvlm_trt.verify.trtllm import peak_bytes

        return Estimate(1 << 20, BASE_BYTES + peak_bytes(sources.checkpoint.config, recipe))

    return Stage(
        name="verify",
        inputs=("inspect", *calibrated, "decoder-convert"),
        outputs=(VERIFY_REPORT,),
        parts={"prompts": recipe.verify_prompts, "tokens": recipe.verify_tokens, **gate_parts(recipe)},
        modules=("nvlm_trt.verify.trtllm",),
        tools=VERIFY_TOOLS,
        run=run,
        estimated=estimated,
        reads_checkpoint=True,
    )


def _refuse_gpu(sources: Sources) -> None:
    """Refuse what the GPU model that the recipe names cannot run.

    Raises:
        RecipeError: with every reason.
    """
    from nvlm_trt.datasheets.datasheet import load_gpu

    if sources.recipe.gpu is None:
        return
    gpu = load_gpu(sources.recipe.gpu)
    if reasons := sources.refusals(gpu.name, gpu.compute_capability):
        raise RecipeError("; ".join(reasons), fix="choose another precision, or another gpu in the recipe")


def _check_machine(sources: Sources) -> None:
    """Refuse to build with versions that do not work together, or on GPUs that cannot run the engines.

    Raises:
        EngineError: with every reason.
    """
    seen = look()
    faults = [str(fault) for fault in check_versions(seen)]
    for name, capability in sorted({(gpu.name, gpu.compute_capability) for gpu in seen.gpus.gpus}):
        faults += sources.refusals(name, capability)
    if faults:
        raise EngineError(f"engines cannot be built on this machine:{listed(faults)}", fix="nvlm-trt doctor shows more")


def _built_for(compatibility: HardwareCompatibility) -> dict[str, object]:
    """What of this machine's GPU an engine built here is tied to: on another one the stage has to run again."""
    gpus = find_gpus().gpus
    tied = gpus and compatibility != "ampere_plus"
    return {"compute_capability": gpus[0].compute_capability} if tied else {}


def _record(directory: Path, built_with: BuiltWith) -> None:
    (directory / BUILT_WITH).write_text(json.dumps(built_with.to_dict(), indent=2) + "\n", encoding="utf-8")


def _timing_cache(context: StageContext, part: str) -> Path:
    """TensorRT's measurements of kernels: shared by all engine directories beside this one, and never an output."""
    return context.engine.parent / ".timing_cache" / f"{part}.cache"
