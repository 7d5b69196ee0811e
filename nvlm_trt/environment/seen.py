"""What this machine has of all that engines are tied to. Libraries are looked up, not imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from nvlm_trt.environment.gpus import GpuReport, find_gpus

TRITON_VERSIONS: Final = ("NVIDIA_TRITON_SERVER_VERSION", "TRITON_SERVER_VERSION")
"""Variables that NVIDIA's images set: the release ("26.04"), and the server's own version ("2.68.0")."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a machine has; None for what it lacks.

    Attributes:
        tensorrt: Version of the Python package.
        tensorrt_llm: Version of the Python package.
        triton: Release of the Triton image that this runs in, or else the server's own version.
        gpus: GPUs, driver and CUDA.
    """

    tensorrt: str | None
    tensorrt_llm: str | None
    triton: str | None
    gpus: GpuReport


def look() -> Seen:
    """Look at this machine."""
    triton = next((value for name in TRITON_VERSIONS if (value := os.environ.get(name))), None)
    return Seen(installed("tensorrt"), installed("tensorrt_llm"), triton, find_gpus())


def installed(distribution: str) -> str | None:
    """Version of an installed distribution; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
