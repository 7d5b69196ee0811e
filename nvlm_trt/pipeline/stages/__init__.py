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
    """All stages of a build in the order in which they run."""
    recipe = sources.recipe
    target = cpu if recipe.target == "cpu" else gpu
    return (
        *([] if sources.synthetic is None else [synth(sources)]),
        inspect(sources),
        *([] if vision_quantization(recipe) is None else [vision_calibrate(sources)]),
        vision_export(sources),
        target.vision_compile(sources),
        *([decoder_calibrate(sources)] if needs_decoder_calibration(sources) else []),
        decoder_convert(sources),
        target.decoder_compile(sources),
        target.verify(sources),
        package(sources),
    )
