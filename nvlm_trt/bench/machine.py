"""Where a benchmark was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.bench.report import Machine
from nvlm_trt.environment.seen import installed, look

LIBRARIES: Final = ("torch", "openvino", "numpy", "nvidia-pytriton", "tritonclient", "tensorrt", "tensorrt_llm")


def this_machine() -> Machine:
    """This machine."""
    seen = look()
    versions = {name: version for name in LIBRARIES if (version := installed(name))}
    if seen.triton:
        versions["triton"] = seen.triton
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        gpus=tuple(gpu.name for gpu in seen.gpus.gpus),
        versions={"python": platform.python_version(), **versions},
    )


def _processor() -> str:
    """The processor's name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
