"""What this machine can build and serve, found out without building anything."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.doctor.diagnosis_gpu import gpu_findings
from nvlm_trt.doctor.finding import BUILD, CPU, EVERYTHING, GPU, SERVE, Finding, Goal
from nvlm_trt.environment.memory import memory
from nvlm_trt.environment.processor import processor
from nvlm_trt.environment.seen import installed, look
from nvlm_trt.errors import CheckpointError, UserError, installing
from nvlm_trt.pipeline.preflight import in_words, nearest

LEAST_MEMORY_BYTES = 2 << 30
LEAST_DISK_BYTES = 1 << 30

WITHOUT: Final = {"bf16": "bf16 engines compute in fp32", "int8": "int8 saves memory, not arithmetic"}
"""What it means that a processor has no instructions for a type."""

NUMA_FOLDER = Path("/sys/devices/system/node")

LIBRARIES: Final[tuple[tuple[str, tuple[Goal, ...]], ...]] = (
    ("torch", BUILD),
    ("onnx", BUILD),
    ("tokenizers", EVERYTHING),
    ("tritonclient", SERVE),
    ("openvino", CPU),
)


def findings(place: Path = Path(), checkpoint: Path | None = None, engine: Path | None = None) -> list[Finding]:
    """Look at everything that a build or a server needs.

    Args:
        place: Where an engine would be built; it need not be there yet.
        checkpoint: A checkpoint whose headers are read; None for none.
        engine: An engine directory whose manifest and model repository are looked at; None for none.
    """
    return [
        _python(),
        _numpy(),
        *(_library(name, needed_for) for name, needed_for in LIBRARIES),
        _tritonserver(),
        _processor(),
        _resizing(),
        _memory(),
        _numa(),
        _disk(place),
        *([] if checkpoint is None else [_checkpoint(checkpoint)]),
        *([] if engine is None else [_engine(engine)]),
        *gpu_findings(look()),
    ]


def hindrances(found: Sequence[Finding], goal: Goal) -> list[str]:
    """Names of what keeps this machine from a goal; empty where it can be reached."""
    return [finding.name for finding in found if not finding.ok and goal in finding.needed_for]


def usable(found: Sequence[Finding]) -> bool:
    """Whether one of the targets can be built and served."""
    return any(not any(hindrances(found, goal) for goal in target) for target in (CPU, GPU))


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", platform.python_version(), fits, EVERYTHING, "" if fits else "3.11 or 3.12 is needed")


def _numpy() -> Finding:
    version = installed("numpy")
    fits = version is not None and version.startswith("1.")
    remark = "" if fits else "below 2 is needed: tritonserver 2.51 corrupts tensors with NumPy 2 without a word"
    return Finding("numpy", version or "absent", fits, EVERYTHING, remark)


def _library(name: str, needed_for: tuple[Goal, ...]) -> Finding:
    version = installed(name)
    extra = "cpu" if needed_for == CPU else "cpu] or [gpu"
    remark = "" if version else f"install nvlm-trt with its extra [{extra}]"
    return Finding(name, version or "absent", version is not None, needed_for, remark)


def _tritonserver() -> Finding:
    """The binary inside the wheel nvidia-pytriton; the package itself is not imported."""
    package = util.find_spec("pytriton")
    places = package.submodule_search_locations if package and package.submodule_search_locations else []
    binary = next(
        (path for place in places if (path := Path(place, "tritonserver", "bin", "tritonserver")).is_file()), None
    )
    runs = binary is not None and os.access(binary, os.X_OK) and platform.machine() in ("x86_64", "aarch64")
    seen = f"in nvidia-pytriton {installed('nvidia-pytriton')}" if binary else "absent"
    return Finding("tritonserver", seen, runs, ("serve_cpu",), "" if runs else f"{installing('cpu')} brings it")


def _processor() -> Finding:
    """Every processor computes every precision; what it has no instructions for gains no speed."""
    seen = processor()
    return Finding("processor", str(seen), True, (), "; ".join(WITHOUT[name] for name in seen.lacks))


def _resizing() -> Finding:
    """What cuts images into tiles: the compiled kernel is five times as fast as Pillow, and gives the same bytes."""
    from nvlm_trt.model.resize_kernel import kernel_status

    status = kernel_status()
    return Finding("resizing", "compiled kernel" if status.kernel else "Pillow", True, (), status.reason)


def _memory() -> Finding:
    available = memory().available
    fits = available >= LEAST_MEMORY_BYTES
    cores = len(psutil.Process().cpu_affinity())
    seen = f"{in_words(available)} available, {cores} cores"
    return Finding("memory", seen, fits, EVERYTHING, "" if fits else f"{in_words(LEAST_MEMORY_BYTES)} are needed")


def _numa() -> Finding:
    count = len(list(NUMA_FOLDER.glob("node[0-9]*")))
    return Finding("numa", f"{count} node{'s' if count > 1 else ''}" if count else "unknown", True, ())


def _disk(place: Path) -> Finding:
    free = shutil.disk_usage(nearest(place)).free
    fits = free >= LEAST_DISK_BYTES
    seen = f"{in_words(free)} free {'here' if place == Path() else f'for {place}'}"
    return Finding("disk", seen, fits, BUILD, "" if fits else "use --output on another disk")


def _checkpoint(directory: Path) -> Finding:
    """Whether the headers of a checkpoint can be read, and are NVLM-D's; its values are not read."""
    try:
        from nvlm_trt.model.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(directory)
    except ImportError as error:
        return Finding("checkpoint", "not looked at", False, BUILD, f"it is read with {error.name}, which is absent")
    except CheckpointError as error:
        return Finding("checkpoint", str(directory), False, BUILD, str(error).splitlines()[0])
    seen = f"{in_words(checkpoint.nbytes)}, {checkpoint.config.decoder.num_layers} decoder layers"
    return Finding("checkpoint", seen, True, BUILD, "nvlm-trt build --dry-run tells what a recipe needs for it")


def _engine(directory: Path) -> Finding:
    """Whether an engine directory was packaged by this version and stands since; its engines are not read."""
    try:
        from nvlm_trt.host.engine import ServedEngine

        engine = ServedEngine.open(directory)
        engine.check_repository()
    except ImportError as error:
        return Finding("engine", "not looked at", False, SERVE, f"it is read with {error.name}, which is absent")
    except UserError as error:
        return Finding("engine", str(directory), False, SERVE, str(error).splitlines()[0])
    return Finding("engine", f"{engine.recipe.name}, target {engine.recipe.target}", True, SERVE)
