"""The stages of a build as values: what each reads, leaves, depends on and needs.

The libraries of a stage are imported when it runs: planning and a dry run need none of them, and a machine for the gpu
target has no OpenVINO.
"""

from __future__ import annotations

from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Stage
from nvlm_trt.pipeline.stages import cpu, gpu
from nvlm_trt.pipeline.stages.calibrate import (
    decoder_calibrate,
    needs_decoder_calibration,
    vision_calibrate,
    vision_quantization,
)
from nvlm_trt.pipeline.stages.decoder import decoder_convert
from nvlm_trt.pipeline.stages.finish import package
from nvlm_trt.pipeline.stages.source import inspect, synth
from nvlm_trt.pipeline.stages.vision import vision_export

__all__ = ["build_plan"]


def build_plan(sources: Sources) -> tuple[Stage, ...]:
    """All stages of a build in the order in which they run.

    On the cpu target `verify` runs the compiled engines. On the gpu target it judges what they are compiled from, and
    comes before them: compiling takes hours, and a checkpoint that no gate lets pass is not worth them.
    """
    recipe = sources.recipe
    prepared = (
        *([] if sources.synthetic is None else [synth(sources)]),
        inspect(sources),
        *([] if vision_quantization(recipe) is None else [vision_calibrate(sources)]),
        vision_export(sources),
    )
    converted = (
        *([decoder_calibrate(sources)] if needs_decoder_calibration(sources) else []),
        decoder_convert(sources),
    )
    if recipe.target == "cpu":
        made = (cpu.vision_compile(sources), *converted, cpu.decoder_compile(sources), cpu.verify(sources))
    else:
        made = (*converted, gpu.verify(sources), gpu.vision_compile(sources), gpu.decoder_compile(sources))
    return (*prepared, *made, package(sources))
