"""Build the vision engine with TensorRT: `model.plan`, its record `engine.json`, `inspector.json`, `build.log`.

Precision. The network is strongly typed: each tensor has the type that the ONNX graph gives it, and no flag lets
TensorRT choose another. (InternViT-6B in float16 was seen to differ from its ONNX graph under TensorRT; NVIDIA/TensorRT
issue 4201 leaves the cause open.) TF32 is off, though TensorRT's default is on. In the bf16 and 8-bit graphs that
changes nothing, because all of their matrix products are of bfloat16; in the fp32 graph, which is asked for when
rounding matters, TF32 would round the inputs of every matrix product to 10 bits.

Shapes. Tiles in, uint8 [num_tiles, s, s, 3]; rows of the prompt table out, [num_tiles, tokens_per_tile, hidden] in the
decoder's dtype. The tiles stay the first dimension, so that Triton can batch those of several requests; the table that
the decoder takes, [num_tiles * tokens_per_tile, hidden], is the same memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from nvlm_trt.engine_files import PLAN_NAME
from nvlm_trt.errors import BuildError, RecipeError, listed
from nvlm_trt.progress import Log, Progress
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.vision.description import VisionDescription
from nvlm_trt.vision.engine_tensorrt import (
    DESCRIPTION_NAME,
    GpuDescription,
    TensorrtEngineDescription,
    TileProfile,
    load_test,
)
from nvlm_trt.vision.operators import unsupported
from nvlm_trt.vision.tensorrt_api import compatibility_level, import_tensorrt, network_flags
from nvlm_trt.vision.tensorrt_callbacks import Callbacks, make_logger, make_monitor
from nvlm_trt.vision.timing_cache import attach, save

LOG_NAME = "build.log"
INSPECTOR_NAME = "inspector.json"

COPY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TensorrtVisionSettings:
    """How TensorRT builds the vision engine.

    Attributes:
        min_tiles: Tiles of a batch at least.
        opt_tiles: Tiles of a batch that kernels are chosen for.
        max_tiles: Tiles of a batch at most.
        workspace_bytes: Scratch memory that kernels may use.
        optimization_level: TensorRT's builder_optimization_level, 0 to 5.
        hardware_compatibility: Other GPUs that the engine shall run on.
    """

    min_tiles: int
    opt_tiles: int
    max_tiles: int
    workspace_bytes: int
    optimization_level: int
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"]

    @property
    def profile(self) -> TileProfile:
        """The one optimisation profile."""
        return TileProfile(least=self.min_tiles, opt=self.opt_tiles, most=self.max_tiles)


def vision_settings(recipe: BuildRecipe, *, tiles_per_image: int, tiles_per_request: int) -> TensorrtVisionSettings:
    """What a recipe asks for; what it leaves open follows from how the tiles of a request spread over the GPUs.

    Args:
        recipe: The recipe.
        tiles_per_image: Most tiles of one image, thumbnail included.
        tiles_per_request: Most tiles of one request.

    Raises:
        RecipeError: kernels shall be chosen for more tiles than a batch may have.
    """
    fields = recipe.vision_engine
    most = recipe.vision_max_tiles(tiles_per_request)
    opt = fields.opt_tiles or min(-(-tiles_per_image // recipe.vision_gpus), most)
    if opt > most:
        raise RecipeError("vision_engine.opt_tiles is more than a batch may have", seen=opt, expected=f"1 to {most}")
    return TensorrtVisionSettings(
        min_tiles=1,
        opt_tiles=opt,
        max_tiles=most,
        workspace_bytes=int(fields.workspace_gib * (1 << 30)),
        optimization_level=fields.optimization_level,
        hardware_compatibility=fields.hardware_compatibility,
    )


def build_vision_tensorrt(
    onnx_path: Path,
    out_dir: Path,
    *,
    settings: TensorrtVisionSettings,
    timing_cache: Path,
    log: Log,
    progress: Progress | None = None,
) -> None:
    """Build, test and describe the engine of `onnx_path`; `model.plan` is in its place only once it passed.

    Args:
        onnx_path: `vision.onnx` of an export, quantised or not, beside its weights and its `config.json`.
        out_dir: An existing directory; an engine that is there is removed first.
        settings: How.
        timing_cache: A file with measured times of kernels, which is used and added to; it need not exist.
        log: Told TensorRT's warnings, and what else a person should know.
        progress: Told TensorRT's progress as bytes of the export's weights.

    Raises:
        EngineError: no TensorRT of a supported version, or an export without its `config.json`.
        BuildError: TensorRT cannot read the graph or build the engine, or the engine fails its load test.
    """
    trt = import_tensorrt()
    source = VisionDescription.load(onnx_path.parent)
    for name in (PLAN_NAME, DESCRIPTION_NAME):
        (out_dir / name).unlink(missing_ok=True)
    _check_operators(onnx_path)
    if progress is not None:
        progress(0, source.data_bytes)
    beside = out_dir / f".{PLAN_NAME}.tmp"
    try:
        with (out_dir / LOG_NAME).open("w", encoding="utf-8") as file:
            callbacks = Callbacks(file, log, progress, source.data_bytes)
            logger = make_logger(trt, callbacks)
            digest = _Builder(trt, logger, callbacks, settings, log).build(onnx_path, source, timing_cache, beside)
            tested = load_test(trt, logger, callbacks, beside, source, settings.profile)
            callbacks.raise_failure()
        if not tested.inference:
            log("the vision engine was loaded, but no tile was run through it: torch sees no GPU")
        (out_dir / INSPECTOR_NAME).write_text(tested.layers, encoding="utf-8")
        TensorrtEngineDescription(
            tensorrt=trt.__version__,
            gpu=GpuDescription.seen(),
            hardware_compatibility=settings.hardware_compatibility,
            profile=settings.profile,
            workspace_bytes=settings.workspace_bytes,
            optimization_level=settings.optimization_level,
            plan_sha256=digest,
            plan_bytes=beside.stat().st_size,
            inference=tested.inference,
            source=source,
        ).save(out_dir)
        beside.replace(out_dir / PLAN_NAME)
    finally:
        beside.unlink(missing_ok=True)
    if progress is not None:
        progress(source.data_bytes, source.data_bytes)


def _check_operators(onnx_path: Path) -> None:
    """Refuse a graph that TensorRT's parser is known not to take, before gigabytes of weights are read."""
    try:
        faults = unsupported(onnx.load(onnx_path, load_external_data=False))
    except (DecodeError, OSError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"the vision graph cannot be read ({error})", seen=onnx_path, fix="export it again") from None
    if faults:
        raise BuildError(f"TensorRT does not take the vision graph:{listed(faults)}", seen=onnx_path)


class _Builder:
    """From the graph to the plan's bytes in a file. What TensorRT holds for it is free again when it returns."""

    def __init__(self, trt: Any, logger: Any, callbacks: Callbacks, settings: TensorrtVisionSettings, log: Log) -> None:
        self._trt, self._logger, self._callbacks = trt, logger, callbacks
        self._settings, self._log = settings, log

    def build(self, onnx_path: Path, source: VisionDescription, timing_cache: Path, target: Path) -> str:
        """Write the plan to `target` and return its SHA-256."""
        builder = self._trt.Builder(self._logger)
        network = builder.create_network(network_flags(self._trt))
        parser = self._trt.OnnxParser(network, self._logger)  # holds the weights until the engine is built
        self._parse(parser, onnx_path)
        config = self._config(builder, source)
        attach(config, timing_cache, self._callbacks, self._log)
        plan = builder.build_serialized_network(network, config)
        self._callbacks.raise_failure()
        if plan is None:
            raise BuildError(f"TensorRT cannot build the vision engine:{listed(self._callbacks.reasons)}")
        save(config, timing_cache, self._callbacks, self._log)
        return _write(plan, target)

    def _parse(self, parser: Any, onnx_path: Path) -> None:
        """Read the graph; the parser finds its weights in the file beside it."""
        if parser.parse_from_file(str(onnx_path)):
            return
        errors = [_in_words(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError(f"TensorRT cannot read the graph:{listed(errors or self._callbacks.reasons)}", seen=onnx_path)

    def _config(self, builder: Any, source: VisionDescription) -> Any:
        trt, settings = self._trt, self._settings
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = settings.optimization_level
        config.hardware_compatibility_level = compatibility_level(trt, settings.hardware_compatibility)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the inspector tells; it costs no time
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = make_monitor(trt, self._callbacks)
        side = source.tile_size
        profile, tiles = builder.create_optimization_profile(), settings.profile
        shapes = [(count, side, side, 3) for count in (tiles.least, tiles.opt, tiles.most)]
        profile.set_shape(source.input.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"TensorRT refuses the profile:{listed(self._callbacks.reasons)}", seen=shapes)
        return config


def _in_words(error: Any) -> str:
    node = f"node {error.node()} {error.node_name()} ({error.node_operator()})"
    return f"{node}: {error.code()}: {error.desc()}"


def _write(plan: Any, target: Path) -> str:
    """Write TensorRT's memory to a file, without a copy of it, and return its SHA-256."""
    content, digest = memoryview(plan), hashlib.sha256()
    with target.open("wb") as file:
        for start in range(0, len(content), COPY_BYTES):
            block = content[start : start + COPY_BYTES]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
