"""What an engine was built with, and whether this machine can load it.

An engine runs with the very TensorRT build that wrote it, on GPUs of its own compute capability; TensorRT only says
"Version tag does not match" when it is loaded, after minutes. A decoder's engine is tied to its TensorRT-LLM as well:
its plugins are that library's. So it is written down, and compared before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from nvlm_trt.environment.capability import OLDEST
from nvlm_trt.environment.gpus import capability_in_words
from nvlm_trt.environment.seen import Seen
from nvlm_trt.environment.versions import numbers
from nvlm_trt.errors import EngineError, listed

BUILT_WITH: Final = "built_with.json"
"""The record beside an engine."""

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


@dataclass(frozen=True, slots=True)
class BuiltWith:
    """The record of an engine, beside it.

    Attributes:
        tensorrt: Version of TensorRT, to its last number; suffixes of the Python package ("post1") do not count.
        tensorrt_llm: Version of TensorRT-LLM; None where it had no part.
        driver: Version of the GPUs' driver.
        cuda: Newest CUDA version that the driver ran.
        gpu: Name of the GPU.
        compute_capability: Of that GPU; 90 for 9.0.
        gpu_count: Visible GPUs of the machine.
        hardware_compatibility: Other GPUs that it was built to run on.
    """

    tensorrt: str
    tensorrt_llm: str | None
    driver: str
    cuda: str
    gpu: str
    compute_capability: int
    gpu_count: int
    hardware_compatibility: HardwareCompatibility = "none"

    @classmethod
    def of(cls, seen: Seen, *, tensorrt_llm: bool, hardware_compatibility: HardwareCompatibility = "none") -> Self:
        """The record of an engine that this machine builds.

        Args:
            seen: What the machine has.
            tensorrt_llm: Whether TensorRT-LLM takes part.
            hardware_compatibility: As in the recipe.

        Raises:
            EngineError: there is no GPU or no TensorRT.
        """
        report = seen.gpus
        if report.fault is not None or seen.tensorrt is None:
            raise EngineError("engines are built with TensorRT on a GPU", seen=report.fault or "no TensorRT")
        return cls(
            tensorrt=seen.tensorrt,
            tensorrt_llm=seen.tensorrt_llm if tensorrt_llm else None,
            driver=report.driver or "unknown",
            cuda=report.cuda or "unknown",
            gpu=report.gpus[0].name,
            compute_capability=report.gpus[0].compute_capability,
            gpu_count=len(report.gpus),
            hardware_compatibility=hardware_compatibility,
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            EngineError: it was written by another version of nvlm-trt.
        """
        try:
            return cls(**raw)
        except TypeError as error:
            raise EngineError(
                "the record of an engine is of another version", seen=error, fix="build it again"
            ) from None


def read_records(engine_dir: Path) -> dict[str, BuiltWith]:
    """The records of an engine directory's engines, by the folder of each.

    Raises:
        EngineError: a record cannot be read.
    """
    records = {}
    for path in sorted(engine_dir.glob(f"**/{BUILT_WITH}")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError("the record of an engine cannot be read", seen=error, fix="build it again") from None
        records[str(path.parent.relative_to(engine_dir))] = BuiltWith.from_dict(raw)
    return records


def compare(engines: Mapping[str, BuiltWith], seen: Seen) -> list[str]:
    """Why this machine cannot load engines: one sentence for each file and reason; empty where it can.

    Args:
        engines: What each file was built with, by the file's path.
        seen: What the machine has.
    """
    return [fault for path, built in engines.items() for fault in _faults(path, built, seen)]


def require_match(engines: Mapping[str, BuiltWith], seen: Seen) -> None:
    """Refuse engines that this machine cannot load.

    Raises:
        EngineError: with every file and reason.
    """
    if faults := compare(engines, seen):
        fix = "serve in the image and on the GPUs that they were built with, or run nvlm-trt build again here"
        raise EngineError(f"these engines cannot be loaded here:{listed(faults)}", fix=fix)


def _faults(path: str, built: BuiltWith, seen: Seen) -> list[str]:
    faults = []
    if numbers(seen.tensorrt or "") != numbers(built.tensorrt):
        faults.append(f"{path} was built by TensorRT {built.tensorrt} and is met by {seen.tensorrt or 'none'}")
    if built.tensorrt_llm is not None and seen.tensorrt_llm != built.tensorrt_llm:
        faults.append(
            f"{path} was built by TensorRT-LLM {built.tensorrt_llm} and is met by {seen.tensorrt_llm or 'none'}"
        )
    if seen.gpus.fault is not None:
        return [*faults, f"{path} was built for {_gpu_of(built)}, but no GPU was found ({seen.gpus.fault})"]
    others = sorted(
        {f"{gpu.name} ({gpu.capability})" for gpu in seen.gpus.gpus if not _fits(built, gpu.compute_capability)}
    )
    if others:
        faults.append(f"{path} was built for {_gpu_of(built)} and is met by {', '.join(others)}")
    return faults


def _gpu_of(built: BuiltWith) -> str:
    return f"{built.gpu} ({capability_in_words(built.compute_capability)})"


def _fits(built: BuiltWith, compute_capability: int) -> bool:
    """Whether an engine runs on a GPU: on its own compute capability, or as far as it was built to."""
    if built.hardware_compatibility == "ampere_plus":
        return compute_capability >= OLDEST
    return compute_capability == built.compute_capability
