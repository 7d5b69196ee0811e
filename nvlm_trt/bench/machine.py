"""Where a benchmark was measured."""

from __future__ import annotations

import os
import platform
from typing import Final

import psutil

from nvlm_trt.bench.report import Machine
from nvlm_trt.environment.processor import processor
from nvlm_trt.environment.seen import installed, look

LIBRARIES: Final = ("torch", "openvino", "numpy", "nvidia-pytriton", "tritonclient", "tensorrt", "tensorrt_llm")


def this_machine() -> Machine:
    """This machine."""
    seen = look()
    versions = {name: version for name in LIBRARIES if (version := installed(name))}
    if seen.triton:
        versions["triton"] = seen.triton
    return Machine(
        processor=str(processor()),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        gpus=tuple(gpu.name for gpu in seen.gpus.gpus),
        versions={"python": platform.python_version(), **versions},
    )
