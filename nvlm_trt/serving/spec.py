"""What the Triton models of one engine directory need to know, in one value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from nvlm_trt.errors import EngineError, RequestError
from nvlm_trt.model.config import load_config
from nvlm_trt.model.image import ImageLimits

if TYPE_CHECKING:
    from nvlm_trt.recipe import BuildRecipe  # whose libraries the model processes need not load

PARAMETER_SPEC: Final = "nvlm_spec"
PARAMETER_ENGINE: Final = "nvlm_engine_dir"
"""Parameters of a Python model's configuration."""

DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer when the client asks for no number: the model card's own call."""

TABLE_DTYPES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}
"""Triton's names of the prompt table's types."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """What a model repository of the gpu target needs to know besides.

    Attributes:
        vision_gpus: GPUs of the first node with an instance of the vision encoder, from GPU 0 on.
        vision_max_tiles: Tiles of one execution of the vision encoder at most: what its plan was built for.
        kv_cache_fraction: Share of the GPU memory left after loading that the KV cache takes.
        kv_cache_reuse: Whether blocks of earlier prompts are kept.
        chunked_context: Whether prompts that do not fit into one step are read in chunks.
    """

    vision_gpus: int
    vision_max_tiles: int
    kv_cache_fraction: float
    kv_cache_reuse: bool
    chunked_context: bool

    @classmethod
    def of(cls, recipe: BuildRecipe, tiles_per_request: int) -> Self:
        """The part of a recipe that concerns GPUs.

        Args:
            recipe: What the engines were built with.
            tiles_per_request: Most tiles that one request brings.
        """
        decoder = recipe.decoder_engine
        return cls(
            vision_gpus=recipe.vision_gpus,
            vision_max_tiles=recipe.vision_max_tiles(tiles_per_request),
            kv_cache_fraction=decoder.kv_cache_fraction,
            kv_cache_reuse=decoder.kv_cache_reuse,
            chunked_context=decoder.chunked_context,
        )


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """What a model repository of the cpu target needs to know besides; the recipe's `cpu_engine`.

    Attributes:
        kv_cache_mib: Memory of the decoder's KV cache at most; None for max_batch_size requests of the longest kind.
        kv_cache_precision: "auto" or "u8".
        kv_cache_reuse: Whether blocks of earlier prompts are kept.
        vision_cache_mib: Memory for prompt-table rows of tiles seen before; 0 keeps none.
    """

    kv_cache_mib: int | None
    kv_cache_precision: Literal["auto", "u8"]
    kv_cache_reuse: bool
    vision_cache_mib: int


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """Shapes and limits of a model repository. Lengths are in tokens, visual ones included.

    Attributes:
        target: "cpu" or "gpu".
        tile_size: Side of a tile in pixels.
        tokens_per_tile: Rows of the prompt table for one tile.
        hidden_size: Width of a row.
        vocab_size: Rows of the decoder's embedding; visual ids begin here.
        use_thumbnail: Whether an image of several tiles gets a thumbnail.
        table_dtype: Triton's name of the prompt table's type.
        max_batch_size: Requests the decoder works on at once.
        max_tiles: Tiles an image is cut into at most, thumbnail not counted.
        max_images: Images of one request.
        max_seq_len: Prompt and answer together at most.
        max_input_len: Prompt at most.
        max_output_len: Answer at most.
        exif_orientation: Whether images are turned upright unless the request says otherwise.
        max_image_bytes: Size of one image file.
        max_image_pixels: Pixels of one image.
        max_image_side: Longer side of an image.
        min_image_side: Shorter side of an image.
        cpu_threads: Threads to compute with; 0 leaves it to the engine.
        max_requests: Requests in the orchestrator at once; more are refused as unavailable.
        cpu: What concerns the cpu target alone; None on the gpu target.
        gpu: What concerns GPUs; None on the cpu target.
    """

    target: str
    tile_size: int
    tokens_per_tile: int
    hidden_size: int
    vocab_size: int
    use_thumbnail: bool
    table_dtype: str
    max_batch_size: int
    max_tiles: int
    max_images: int
    max_seq_len: int
    max_input_len: int
    max_output_len: int
    exif_orientation: bool
    max_image_bytes: int
    max_image_pixels: int
    max_image_side: int
    min_image_side: int
    cpu_threads: int
    max_requests: int = 512
    cpu: CpuSpec | None = None
    gpu: GpuSpec | None = None

    @property
    def image_limits(self) -> ImageLimits:
        """The limits that are checked before an image is decoded."""
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_side=self.max_image_side,
            min_side=self.min_image_side,
        )

    @property
    def default_max_tokens(self) -> int:
        """Tokens of an answer when the client asks for no number."""
        return min(DEFAULT_MAX_TOKENS, self.max_output_len)

    def check_max_tokens(self, asked: int) -> None:
        """Refuse an answer that is longer than the engine's.

        Raises:
            RequestError: with the number and the limit.
        """
        if asked > self.max_output_len:
            raise RequestError("max_tokens is beyond the engine", seen=asked, expected=f"1 to {self.max_output_len}")

    @classmethod
    def of(cls, engine_dir: Path, recipe: BuildRecipe) -> Self:
        """The spec of an engine directory, from its config.json and the recipe that it was built with.

        Raises:
            CheckpointError: the directory's config.json is missing or not NVLM-D's.
        """
        config = load_config(engine_dir)
        limits = recipe.image_limits
        max_seq_len = recipe.max_seq_len(config.decoder.max_position_embeddings)
        spec = cls(
            target=recipe.target,
            tile_size=config.tile_size,
            tokens_per_tile=config.tokens_per_tile,
            hidden_size=config.decoder.hidden_size,
            vocab_size=config.decoder.vocab_size,
            use_thumbnail=config.use_thumbnail,
            table_dtype=TABLE_DTYPES[recipe.table_precision],
            max_batch_size=recipe.max_batch_size,
            max_tiles=recipe.max_tiles,
            max_images=recipe.max_images,
            max_seq_len=max_seq_len,
            max_input_len=min(recipe.max_input_len, max_seq_len - 1),
            max_output_len=recipe.max_output_len,
            exif_orientation=recipe.exif_orientation,
            max_image_bytes=limits.max_bytes,
            max_image_pixels=limits.max_pixels,
            max_image_side=limits.max_side,
            min_image_side=limits.min_side,
            cpu_threads=recipe.cpu_threads,
        )
        if recipe.target == "cpu":
            return replace(spec, cpu=CpuSpec(**recipe.cpu_engine.model_dump()))
        return replace(spec, gpu=GpuSpec.of(recipe, recipe.tiles_per_request(use_thumbnail=config.use_thumbnail)))

    def to_json(self) -> str:
        """The spec as the text that the models' configurations carry; without the member of the other target."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            EngineError: the text is of another version of nvlm-trt.
        """
        raw = _members(json.loads(text), cls)
        cpu, gpu = raw.pop("cpu", None), raw.pop("gpu", None)
        return cls(
            **raw,
            cpu=CpuSpec(**_members(cpu, CpuSpec)) if cpu is not None else None,
            gpu=GpuSpec(**_members(gpu, GpuSpec)) if gpu is not None else None,
        )


TARGETS = {"cpu", "gpu"}
"""Members of which a spec has one."""


def _members(raw: object, kind: type[ServingSpec | CpuSpec | GpuSpec]) -> dict[str, Any]:
    """The members of one of the specs, which are all there but those of the targets.

    Raises:
        EngineError: there are others, or some are missing.
    """
    names = {field.name for field in fields(kind)}
    if not isinstance(raw, dict) or raw.keys() | TARGETS != names | TARGETS:
        seen = sorted(names ^ set(raw)) if isinstance(raw, dict) else type(raw).__name__
        raise EngineError("the model repository is of another version", seen=seen, fix="package it again")
    return raw


def spec_of(config_parameters: dict[str, dict[str, str]], model_dir: Path) -> tuple[ServingSpec, Path]:
    """What a Python model finds in its own configuration.

    Args:
        config_parameters: Member ``parameters`` of the model's configuration as JSON.
        model_dir: The model's directory.

    Returns:
        The spec, and the engine directory.

    Raises:
        EngineError: the repository is of another version.
    """
    try:
        text = config_parameters[PARAMETER_SPEC]["string_value"]
        relative = config_parameters[PARAMETER_ENGINE]["string_value"]
    except KeyError:
        raise EngineError("a model's configuration has no spec", fix="package the engine again") from None
    return ServingSpec.from_json(text), (model_dir / relative).resolve()
