"""What this machine can build and serve, found out without building anything."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import psutil

from nvlm_trt.pipeline.preflight import in_words

For = Literal["build", "serve", "both", "gpu"]

LEAST_MEMORY_BYTES = 2 << 30
LEAST_DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        seen: What was found, in words.
        ok: Whether it is as it has to be.
        needed_for: What cannot be done without it; "gpu" is not part of the cpu target.
        remark: What follows, or what to do.
    """

    name: str
    seen: str
    ok: bool
    needed_for: For
    remark: str = ""


def findings(place: Path = Path()) -> list[Finding]:
    """Look at the interpreter, the libraries, tritonserver, memory, the disk at `place`, and the GPU."""
    return [
        _python(),
        _numpy(),
        *(_library(name, needed_for) for name, needed_for in _LIBRARIES),
        _tritonserver(),
        _memory(),
        _disk(place),
        _gpu(),
        _tensorrt(),
    ]


def can_build(found: Sequence[Finding]) -> bool:
    """Whether an engine of the cpu target can be built."""
    return all(finding.ok for finding in found if finding.needed_for in ("build", "both"))


def can_serve(found: Sequence[Finding]) -> bool:
    """Whether an engine of the cpu target can be served."""
    return all(finding.ok for finding in found if finding.needed_for in ("serve", "both"))


_LIBRARIES: tuple[tuple[str, For], ...] = (
    ("torch", "build"),
    ("onnx", "build"),
    ("openvino", "both"),
    ("tokenizers", "both"),
    ("tritonclient", "serve"),
)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", platform.python_version(), fits, "both", "" if fits else "3.11 or 3.12 is needed")


def _numpy() -> Finding:
    version = _version("numpy")
    fits = version is not None and version.startswith("1.")
    remark = "" if fits else "below 2 is needed: tritonserver 2.51 corrupts tensors with NumPy 2 without a word"
    return Finding("numpy", version or "absent", fits, "both", remark)


def _library(name: str, needed_for: For) -> Finding:
    version = _version(name)
    remark = "" if version else "install nvlm-trt with its extra: pip install 'nvlm-trt[cpu]'"
    return Finding(name, version or "absent", version is not None, needed_for, remark)


def _tritonserver() -> Finding:
    """The binary inside the wheel nvidia-pytriton; the package itself is not imported."""
    package = util.find_spec("pytriton")
    places = package.submodule_search_locations if package and package.submodule_search_locations else []
    binary = next(
        (path for place in places if (path := Path(place, "tritonserver", "bin", "tritonserver")).is_file()), None
    )
    runs = binary is not None and os.access(binary, os.X_OK) and platform.machine() in ("x86_64", "aarch64")
    seen = f"in nvidia-pytriton {_version('nvidia-pytriton')}" if binary else "absent"
    return Finding("tritonserver", seen, runs, "serve", "" if runs else "pip install 'nvlm-trt[cpu]' brings it")


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    fits = available >= LEAST_MEMORY_BYTES
    cores = len(psutil.Process().cpu_affinity())
    seen = f"{in_words(available)} available, {cores} cores"
    return Finding("memory", seen, fits, "both", "" if fits else f"{in_words(LEAST_MEMORY_BYTES)} are needed")


def _disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    fits = free >= LEAST_DISK_BYTES
    return Finding("disk", f"{in_words(free)} free here", fits, "build", "" if fits else "use --output on another disk")


def _gpu() -> Finding:
    present = shutil.which("nvidia-smi") is not None
    return Finding("gpu", "present" if present else "absent", present, "gpu", "only the gpu target needs one")


def _tensorrt() -> Finding:
    version = _version("tensorrt")
    remark = "only the gpu target needs it; compiling for gpu is not part of this release"
    return Finding("tensorrt", version or "absent", version is not None, "gpu", remark)
