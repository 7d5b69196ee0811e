"""Which versions work together, as data, and what is wrong with those of a machine.

The engine flow (checkpoint, trtllm-build, C++ backend) ends with TensorRT-LLM 1.2. The policy and the sources of each
figure are in docs/versions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from nvlm_trt.environment.capability import OLDEST
from nvlm_trt.environment.gpus import FIRST_DRIVERS, Gpu, GpuReport, capability_in_words
from nvlm_trt.environment.seen import Seen

Subject = Literal["gpu", "cuda", "tensorrt", "tensorrt_llm"]


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.3.0rc3" -> (1, 3, 0). A pre-release counts as what it becomes."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0]))


@dataclass(frozen=True, slots=True)
class Range:
    """Versions from `first` on and before `end`; `words` names them for a person."""

    first: tuple[int, ...]
    end: tuple[int, ...]
    words: str

    def __contains__(self, version: str) -> bool:
        return self.first <= numbers(version) < self.end


PINNED_TENSORRT_LLM: Final = "1.2.1"
PINNED_TENSORRT: Final = "10.14.1.48"
PINNED_CUDA: Final = 13
PINNED_TRITON: Final = ("26.04", "26.05", "26.06", "26.07")
"""Releases of Triton's image that carry these."""

PINNED_IMAGE: Final = f"nvcr.io/nvidia/tritonserver:{PINNED_TRITON[0]}-trtllm-python-py3"

TENSORRT: Final = Range((10, 11), (10, 17), "10.11 to 10.16")
TENSORRT_11: Final = (11,)
TENSORRT_LLM: Final = Range((1, 2), (1, 3), "1.2")
OWN_TENSORRT: Final = "10.14"
"""TensorRT that those TensorRT-LLM are built with."""

TENSORRT_EXPECTED: Final = f"{TENSORRT.words} (pinned: {PINNED_TENSORRT})"
USE_IMAGE: Final = f"use the image {PINNED_IMAGE}"


@dataclass(frozen=True, slots=True)
class VersionFault:
    """Something that a machine has and cannot be worked with.

    Attributes:
        subject: What it is about.
        what: What is wrong.
        seen: The version met.
        expected: Those that work.
        fix: What to do.
    """

    subject: Subject
    what: str
    seen: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; seen: {self.seen}; expected: {self.expected}; {self.fix}"


def check_versions(seen: Seen) -> list[VersionFault]:
    """What keeps a machine from building and serving the gpu target; empty where nothing does."""
    return [
        *_gpu_faults(seen.gpus),
        *_cuda_faults(seen.gpus),
        *_tensorrt_faults(seen.tensorrt),
        *_tensorrt_llm_faults(seen.tensorrt_llm),
    ]


def _gpu_faults(report: GpuReport) -> list[VersionFault]:
    if report.fault is not None:
        return [VersionFault("gpu", "no GPU was found", report.fault, "NVIDIA GPUs", "run this on a machine with GPUs")]
    faults = []
    if old := _named(gpu for gpu in report.gpus if gpu.compute_capability < OLDEST):
        what, fix = "a GPU is too old for TensorRT-LLM and bfloat16", "use Ampere or a newer GPU"
        expected = f"compute capability {capability_in_words(OLDEST)} or newer"
        faults.append(VersionFault("gpu", what, old, expected, fix))
    if len({gpu.compute_capability for gpu in report.gpus}) > 1:
        what, fix = "the GPUs differ, and an engine is for one kind", "hide the others: CUDA_VISIBLE_DEVICES, by UUID"
        faults.append(VersionFault("gpu", what, _named(report.gpus), "one compute capability", fix))
    return faults


def _named(gpus: Iterable[Gpu]) -> str:
    return ", ".join(sorted({f"{gpu.name} ({gpu.capability})" for gpu in gpus}))


def _cuda_faults(report: GpuReport) -> list[VersionFault]:
    if report.fault is not None or numbers(report.cuda or "0")[0] >= PINNED_CUDA:
        return []
    what, expected = "the driver is too old for TensorRT-LLM", f"CUDA {PINNED_CUDA} or newer"
    met = f"driver {report.driver}, CUDA {report.cuda or 'unknown'}"
    fix = f"renew the driver ({FIRST_DRIVERS[PINNED_CUDA]} or newer)"
    return [VersionFault("cuda", what, met, expected, fix)]


def _tensorrt_faults(version: str | None) -> list[VersionFault]:
    if version is not None and version in TENSORRT:
        return []
    what = "TensorRT is not installed" if version is None else "this TensorRT is not supported"
    if version is not None and numbers(version) >= TENSORRT_11:
        what = "TensorRT 11 builds vision engines alone, and this Triton cannot load them: TensorRT-LLM is tied to 10"
    return [VersionFault("tensorrt", what, version or "none", TENSORRT_EXPECTED, USE_IMAGE)]


def _tensorrt_llm_faults(version: str | None) -> list[VersionFault]:
    if version is not None and version in TENSORRT_LLM:
        return []
    what = "TensorRT-LLM is not installed" if version is None else "this TensorRT-LLM is not supported"
    if version is not None and numbers(version) >= TENSORRT_LLM.end:
        what = "this TensorRT-LLM builds no engines: from 1.3 on there is no trtllm-build and no C++ backend"
    expected = f"{TENSORRT_LLM.words} (pinned: {PINNED_TENSORRT_LLM})"
    return [VersionFault("tensorrt_llm", what, version or "none", expected, USE_IMAGE)]
