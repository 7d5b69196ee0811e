"""The stages of a build as values: what each reads, leaves, depends on and needs.

The libraries of a stage are imported when it runs: planning and a dry run need none of them, and a machine for the gpu
target has no OpenVINO.
"""

from __future__ import annotations

from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Stage
from nvlm_trt.pipeline.stages.decoder import decoder_compile, decoder_convert
from nvlm_trt.pipeline.stages.finish import package, verify
from nvlm_trt.pipeline.stages.source import inspect, synth
from nvlm_trt.pipeline.stages.vision import vision_compile, vision_export

__all__ = ["build_plan"]


def build_plan(sources: Sources) -> tuple[Stage, ...]:
    """All stages of a build in the order in which they run."""
    made = () if sources.synthetic is None else (synth(sources),)
    return (
        *made,
        inspect(sources),
        vision_export(sources),
        vision_compile(sources),
        decoder_convert(sources),
        decoder_compile(sources),
        verify(sources),
        package(sources),
    )
