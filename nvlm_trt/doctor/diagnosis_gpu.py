"""What this machine has for the gpu target."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Final

from nvlm_trt.doctor.finding import GPU, Finding, Goal
from nvlm_trt.environment.capability import remark
from nvlm_trt.environment.gpus import GpuReport
from nvlm_trt.environment.seen import Seen
from nvlm_trt.environment.versions import (
    OWN_TENSORRT,
    PINNED_TRITON,
    TENSORRT_LLM,
    USE_IMAGE,
    Subject,
    VersionFault,
    check_versions,
)
from nvlm_trt.errors import EngineError
from nvlm_trt.pipeline.preflight import in_words

BUILDER: Final = "trtllm-build"
LAUNCHER: Final = "mpirun"


def gpu_findings(seen: Seen) -> list[Finding]:
    """One finding for each thing that engines are built or served with; libraries are not imported."""
    faults = check_versions(seen)
    return [
        *_gpus(seen, _about("gpu", faults)),
        _driver(seen.gpus, _about("cuda", faults)),
        _judged("tensorrt", seen.tensorrt or "absent", _about("tensorrt", faults)),
        _judged("tensorrt_llm", seen.tensorrt_llm or "absent", _about("tensorrt_llm", faults), _pairing(seen)),
        _program(BUILDER, ("build_gpu",), USE_IMAGE),
        _launcher(len(seen.gpus.gpus)),
        _tritonserver(),
        Finding("triton image", seen.triton or "not inside one", True, (), _image(seen.triton)),
    ]


def _about(subject: Subject, faults: Sequence[VersionFault]) -> list[VersionFault]:
    return [fault for fault in faults if fault.subject == subject]


def _judged(name: str, seen: str, faults: Sequence[VersionFault], remark: str = "") -> Finding:
    """A finding that is in order unless there are faults, which are its remark then."""
    told = "; ".join(f"{fault.what}, expected: {fault.expected}; {fault.fix}" for fault in faults)
    return Finding(name, seen, not faults, GPU, told or remark)


def _gpus(seen: Seen, faults: Sequence[VersionFault]) -> list[Finding]:
    """One finding for all GPUs together, and one for each."""
    rows = [
        Finding(
            f"gpu {index}",
            f"{gpu.name}, compute capability {gpu.capability}, "
            + (in_words(gpu.memory_bytes) if gpu.memory_bytes else "the host's memory"),
            True,
            (),
            remark(gpu.compute_capability),
        )
        for index, gpu in enumerate(seen.gpus.gpus)
    ]
    return [_judged("gpus", seen.gpus.fault or str(len(rows)), faults), *rows]


def _driver(report: GpuReport, faults: Sequence[VersionFault]) -> Finding:
    if report.driver is None:
        return Finding("driver", "absent", False, GPU)
    return _judged("driver", f"{report.driver}, CUDA {report.cuda or 'unknown'}", faults)


def _pairing(seen: Seen) -> str:
    """A remark where TensorRT is not the one that TensorRT-LLM was built with; its own packages pin that."""
    if seen.tensorrt is None or seen.tensorrt.startswith(f"{OWN_TENSORRT}."):
        return ""
    if seen.tensorrt_llm is None or seen.tensorrt_llm not in TENSORRT_LLM:
        return ""
    return f"TensorRT-LLM {TENSORRT_LLM.words} comes with TensorRT {OWN_TENSORRT}"


def _program(name: str, needed_for: tuple[Goal, ...], fix: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path or "not on PATH", path is not None, needed_for, "" if path else fix)


def _launcher(gpus: int) -> Finding:
    """It starts a process for each rank; a decoder on one GPU needs none."""
    fix = "it starts the ranks of a decoder on several GPUs"
    return _program(LAUNCHER, ("serve_gpu",) if gpus > 1 else (), fix)


def _tritonserver() -> Finding:
    from nvlm_trt.host.environment import ImageTriton

    try:
        return Finding("tritonserver for gpu", str(ImageTriton.find().binary), True, ("serve_gpu",))
    except EngineError as error:
        return Finding("tritonserver for gpu", str(error.seen), False, ("serve_gpu",), error.fix or "")


def _image(triton: str | None) -> str:
    if triton is None or triton in PINNED_TRITON:
        return ""
    return f"pinned are {PINNED_TRITON[0]} to {PINNED_TRITON[-1]}"
