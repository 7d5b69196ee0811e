"""A vision engine of TensorRT: the record beside it, and the test that it loads and runs."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from nvlm_trt.errors import BuildError, EngineError, listed
from nvlm_trt.vision.description import TensorDescription, VisionDescription
from nvlm_trt.vision.tensorrt_api import data_type
from nvlm_trt.vision.tensorrt_callbacks import Callbacks

DESCRIPTION_NAME = "engine.json"
"""Not config.json: that is the export's, which may lie in the same folder."""

Shape = tuple[int, ...]


class TileProfile(BaseModel):
    """How many tiles a batch may have: the engine's one optimisation profile.

    Attributes:
        least: Fewest tiles.
        opt: Tiles that kernels are chosen for.
        most: Most tiles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    least: int
    opt: int
    most: int


class GpuDescription(BaseModel):
    """The GPU that an engine was built on; engines run on GPUs of its compute capability.

    Attributes:
        name: As the driver calls it.
        compute_capability: Such as "9.0".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    compute_capability: str

    @classmethod
    def seen(cls) -> Self | None:
        """The GPU that torch uses; None where it sees none."""
        if not torch.cuda.is_available():
            return None
        major, minor = torch.cuda.get_device_capability()
        return cls(name=torch.cuda.get_device_name(), compute_capability=f"{major}.{minor}")


class TensorrtEngineDescription(BaseModel):
    """The record of a vision engine.

    Attributes:
        format: Version of this file's layout.
        tensorrt: Version of the TensorRT that built it, and the only one that loads it.
        gpu: Where it was built; None where torch saw no GPU.
        hardware_compatibility: Other GPUs that it was built to run on.
        profile: How many tiles a batch may have.
        workspace_bytes: Scratch memory that kernels may use.
        optimization_level: TensorRT's builder_optimization_level.
        plan_sha256: Digest of `model.plan`.
        plan_bytes: Its length.
        inference: Whether a tile went through the engine when it was built; False where torch saw no GPU.
        source: The export that it was built from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    tensorrt: str
    gpu: GpuDescription | None
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"]
    profile: TileProfile
    workspace_bytes: int
    optimization_level: int
    plan_sha256: str
    plan_bytes: int
    inference: bool
    source: VisionDescription

    def save(self, directory: Path) -> None:
        """Write `engine.json` into `directory`."""
        (directory / DESCRIPTION_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `engine.json` of `directory`.

        Raises:
            EngineError: there is none, or it is not what this version writes.
        """
        path = directory / DESCRIPTION_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise EngineError(
                f"a vision engine has no record ({error.strerror})", seen=path, fix="build it again"
            ) from None
        except ValidationError as error:
            what = "the record of a vision engine is damaged or of another version"
            raise EngineError(f"{what} ({error.errors()[0]['msg']})", seen=path, fix="build it again") from None


@dataclass(frozen=True, slots=True)
class LoadTested:
    """What a load test found.

    Attributes:
        layers: TensorRT's own account of the engine, layer by layer (JSON).
        inference: Whether a tile went through it.
    """

    layers: str
    inference: bool


def load_test(
    trt: Any, logger: Any, callbacks: Callbacks, plan: Path, source: VisionDescription, profile: TileProfile
) -> LoadTested:
    """Load a plan from its file as Triton would, compare it with its description, and run one tile through it.

    Args:
        trt: TensorRT's package.
        logger: Its logger.
        callbacks: What the logger writes to.
        plan: The file.
        source: The export that it was built from.
        profile: The tiles that it was built for.

    Raises:
        BuildError: it cannot be loaded, is another engine than described, or computes no finite rows.
    """
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        what = "the vision engine cannot be loaded by the TensorRT that built it"
        raise BuildError(f"{what}:{listed(callbacks.reasons)}")
    check_tensors(trt, engine, source, profile)
    context = engine.create_execution_context()
    if context is None:
        what = "the vision engine gets no execution context"
        raise BuildError(
            f"{what}:{listed(callbacks.reasons)}",
            seen=f"{profile.most} tiles at most",
            fix="where GPU memory is short, lower vision_engine.max_tiles",
        )
    inference = torch.cuda.is_available()
    if inference:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            run_black_tile(context, source, "cuda", stream.cuda_stream, stream.synchronize)
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return LoadTested(layers, inference)


def check_tensors(trt: Any, engine: Any, source: VisionDescription, profile: TileProfile) -> None:
    """Compare an engine's inputs, outputs and profile with its description.

    Raises:
        BuildError: with the first difference.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    _require("tensors", sorted(names), sorted([source.input.name, source.output.name]))
    for tensor, mode in ((source.input, trt.TensorIOMode.INPUT), (source.output, trt.TensorIOMode.OUTPUT)):
        _require(f"mode of {tensor.name}", engine.get_tensor_mode(tensor.name), mode)
        _require(f"type of {tensor.name}", engine.get_tensor_dtype(tensor.name), data_type(trt, tensor.dtype))
        _require(f"shape of {tensor.name}", tuple(engine.get_tensor_shape(tensor.name)), _shape(tensor, -1))
    _require("number of profiles", engine.num_optimization_profiles, 1)
    shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(source.input.name, 0)]
    _require("profile", shapes, [_shape(source.input, tiles) for tiles in (profile.least, profile.opt, profile.most)])


def run_black_tile(
    context: Any, source: VisionDescription, device: str, stream: int, synchronize: Callable[[], None]
) -> None:
    """Run one black tile through an engine and look at the rows that come out.

    Args:
        context: TensorRT's execution context.
        source: The export that the engine was built from.
        device: Torch's name of the device.
        stream: Address of the CUDA stream, which is torch's current one.
        synchronize: Waits until the stream has nothing left to do.

    Raises:
        BuildError: TensorRT refuses, or the rows have another shape or are not finite.
    """
    shape, expected = _shape(source.input, 1), _shape(source.output, 1)
    tile = torch.zeros(shape, dtype=torch.uint8, device=device)
    _require(f"{source.input.name} of one tile taken", context.set_input_shape(source.input.name, shape), True)
    _require("shape of one tile's rows", tuple(context.get_tensor_shape(source.output.name)), expected)
    # Not a number until TensorRT has written every one of them.
    rows = torch.full(expected, math.nan, device=device, dtype=getattr(torch, source.output.dtype))
    for name, tensor in ((source.input.name, tile), (source.output.name, rows)):
        _require(f"address of {name} taken", context.set_tensor_address(name, tensor.data_ptr()), True)
    _require("one tile run", context.execute_async_v3(stream), True)
    synchronize()
    finite = int(rows.isfinite().sum())
    _require("finite values in one tile's rows", finite, rows.numel())


def _shape(tensor: TensorDescription, tiles: int) -> Shape:
    return tuple(tiles if isinstance(size, str) else size for size in tensor.shape)


def _require(what: str, seen: object, expected: object) -> None:
    if seen != expected:
        raise BuildError(f"the vision engine fails its load test: {what}", seen=seen, expected=expected)
