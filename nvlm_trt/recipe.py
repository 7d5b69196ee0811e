"""The recipe: what to build, read from YAML into one frozen, typed value.

Every field has its home here; an unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nvlm_trt.errors import RecipeError
from nvlm_trt.model.image import DEFAULT_LIMITS, ImageLimits
from nvlm_trt.parsed import yaml_value

Target = Literal["gpu", "cpu"]
VisionPrecision = Literal["fp32", "bf16", "fp8", "int8"]
DecoderPrecision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int8_sq", "int8_wo", "int4_wo", "int4_awq"]

CPU_VISION: tuple[VisionPrecision, ...] = ("fp32", "bf16", "int8")
CPU_DECODER: tuple[DecoderPrecision, ...] = ("fp32", "bf16", "int8_wo", "int4_wo", "int8")

SYNTHETIC_PREFIX = "synth:"
"""A checkpoint of ``synth:tiny`` is made by the build itself, random and in the real layout."""


class RecipeFields(BaseModel):
    """Fields of a recipe: frozen, known by name, numbers that are finite and no booleans."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_boolean(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a boolean where a number is meant: pydantic takes true for 1."""
        given = value if isinstance(value, list) else [value]
        is_boolean = cls.model_fields[str(info.field_name)].annotation is bool
        if not is_boolean and any(isinstance(each, bool) for each in given):
            raise ValueError("Input should be no boolean")
        return value


class ImageLimitFields(RecipeFields):
    """Limits on images, checked from headers before a pixel is decoded (nvlm_trt.model.image)."""

    max_bytes: Annotated[int, Field(ge=1)] = DEFAULT_LIMITS.max_bytes
    max_pixels: Annotated[int, Field(ge=1, le=89_000_000)] = DEFAULT_LIMITS.max_pixels
    max_side: Annotated[int, Field(ge=1)] = DEFAULT_LIMITS.max_side
    min_side: Annotated[int, Field(ge=1)] = DEFAULT_LIMITS.min_side

    def limits(self) -> ImageLimits:
        """The same as what reads images takes them."""
        return ImageLimits(**self.model_dump())


class VisionEngineFields(RecipeFields):
    """How TensorRT builds the vision engine, and where it runs; gpu target only.

    Attributes:
        opt_tiles: Tiles of a batch that kernels are chosen for; None for one GPU's part of an image with its thumbnail.
        max_tiles: Tiles of a batch at most; None for one GPU's part of a request.
        workspace_gib: Scratch memory that kernels may use.
        optimization_level: TensorRT's builder_optimization_level.
        hardware_compatibility: Other compute capabilities that the engine shall run on, at the price of speed.
        gpus: GPUs with an instance of the vision engine each, over which tiles spread; None for all tp x pp.
    """

    opt_tiles: Annotated[int, Field(ge=1)] | None = None
    max_tiles: Annotated[int, Field(ge=1)] | None = None
    workspace_gib: Annotated[float, Field(gt=0)] = 8.0
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    gpus: Annotated[int, Field(ge=1)] | None = None


class DecoderEngineFields(RecipeFields):
    """How trtllm-build builds the decoder's engine and how it is run; gpu target only.

    Attributes:
        kv_cache_precision: "auto" is fp8 for an fp8 decoder and the decoder's own dtype for all others ("model").
        max_num_tokens: Tokens of one step over all requests; None for the longest prompt, at least 8192. With less, say
            2048 to 8192, others wait less for a long prompt, which takes several steps then.
        tokens_per_block: Tokens of one block of the KV cache.
        multiple_profiles: Kernels are chosen for steps of up to 64, 128, 256, 512, 1024 and max_num_tokens tokens; one
            profile has them chosen for max_batch_size tokens alone. A longer build. It matters where TensorRT's own
            kernels multiply matrices (fp8 and int8_sq): plugins choose theirs as they run.
        workers: Ranks that are built at a time; None for as many as host memory and GPUs allow.
        awq_group_size: Input channels that share one scale in int4_awq.
        kv_cache_fraction: Share of the GPU memory left after loading that the KV cache takes.
        kv_cache_reuse: Keep blocks of earlier prompts; images are told apart by their digests.
        chunked_context: Read prompts in chunks where those that wait do not fit into a step of max_num_tokens, beside
            the tokens that are decoded; what fits is read whole.
        speculative_decoding: "lookahead" is known and refused: TensorRT-LLM's does not work with a prompt table.
    """

    kv_cache_precision: Literal["auto", "model", "fp8", "int8"] = "auto"
    max_num_tokens: Annotated[int, Field(ge=1)] | None = None
    tokens_per_block: Literal[16, 32, 64, 128] = 32
    multiple_profiles: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    awq_group_size: Literal[64, 128] = 128
    kv_cache_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    kv_cache_reuse: bool = True
    chunked_context: bool = True
    speculative_decoding: Literal["none", "lookahead"] = "none"


class CpuEngineFields(RecipeFields):
    """How the cpu target's engines are run; cpu target only.

    Attributes:
        kv_cache_mib: Memory of the decoder's KV cache at most; None for max_batch_size requests of the longest kind.
        kv_cache_precision: "auto" is the dtype that the decoder computes in; "u8" takes 8 bits a value.
        kv_cache_reuse: Keep blocks of earlier prompts; images are told apart by the content of their tiles.
        vision_cache_mib: Memory for prompt-table rows of tiles seen before; 0 keeps none.
    """

    kv_cache_mib: Annotated[int, Field(ge=1)] | None = None
    kv_cache_precision: Literal["auto", "u8"] = "auto"
    kv_cache_reuse: bool = True
    vision_cache_mib: Annotated[int, Field(ge=0)] = 512


class CalibrationFields(RecipeFields):
    """What scales of quantised activations are measured on; on the cpu target those of vision alone.

    Attributes:
        samples: A JSONL file of texts and images, relative to the working directory; None for the project's own set.
        count: Samples that are used, from the first one on.
        max_tokens: Tokens of a sample at most, visual ones included; longer ones are cut at the end.
        device: Where layers are run: "auto" is a GPU if torch sees one, else the CPU.
    """

    samples: str | None = None
    count: Annotated[int, Field(ge=1, le=4096)] = 64
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    device: Literal["auto", "cpu", "cuda"] = "auto"


class GateFields(RecipeFields):
    """Bounds of stage verify on what a precision may cost; None takes the default of the recipe's precisions.

    The figures, with formula and unit, are functions of nvlm_trt/verify/measures.py; defaults and reasons are in
    nvlm_trt/verify/gates.py.

    Attributes:
        projector_mean_distance: Of the prompt table, the mean of 1 - cosine over all visual tokens, at most.
        projector_worst_distance: The same of the visual token that is furthest off, at most.
        logit_distance: Of the decoder's logits, the mean of 1 - cosine, at most.
        logit_kl: Mean KL divergence on prompts with images, vision and decoder together, in nats, at most.
        top1_agreement: Share of decided positions of these prompts with the same best token, at least.
        canary_response: How much a swapped image moves the logits, over how much it moves the reference's, at least.
        canary_unchanged: Canaries whose answer ought to change with the image and does not, at most.
        task: A JSONL file of questions with right answers (nvlm_trt/eval/tasks.py), relative to the working directory,
            or ``shipped:nvlm-d-mini`` for the project's own; None runs no task.
        task_samples: Samples that are used, from the first one on; None for all.
        task_accuracy_drop: Points of 100 that the task's score may be below the reference's, at most.
    """

    projector_mean_distance: Annotated[float, Field(ge=0)] | None = None
    projector_worst_distance: Annotated[float, Field(ge=0)] | None = None
    logit_distance: Annotated[float, Field(ge=0)] | None = None
    logit_kl: Annotated[float, Field(ge=0)] | None = None
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    canary_response: Annotated[float, Field(ge=0)] | None = None
    canary_unchanged: Annotated[int, Field(ge=0)] | None = None
    task: str | None = None
    task_samples: Annotated[int, Field(ge=1)] | None = None
    task_accuracy_drop: Annotated[float, Field(ge=0, le=100)] | None = None


class BuildRecipe(RecipeFields):
    """What to build. Lengths are in tokens, visual tokens included; batch sizes in requests.

    `gpu` names the GPU model that the engines are for (a file of nvlm_trt/datasheets), so that what it cannot do is
    refused before anything is built; None asks nothing before the build. `exclude_layers` are layers of the decoder
    that stay bf16 where weights are quantised; of the cpu target only. `gpus_per_node` matters where ranks run on
    several nodes: TensorRT-LLM gives rank r GPU r modulo this (WorldConfig), and its own default is 8.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    target: Target
    checkpoint: str | None = None
    tp: Annotated[int, Field(ge=1, le=64)] = 1
    pp: Annotated[int, Field(ge=1, le=64)] = 1
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 8
    vision_precision: VisionPrecision = "bf16"
    decoder_precision: DecoderPrecision = "bf16"
    exclude_layers: Annotated[frozenset[Annotated[int, Field(ge=0)]], PlainSerializer(sorted, list[int])] = frozenset()
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_tiles: Annotated[int, Field(ge=1, le=12)] = 6
    max_images: Annotated[int, Field(ge=1, le=64)] = 4
    max_input_len: Annotated[int, Field(ge=1)] = 8192
    max_output_len: Annotated[int, Field(ge=1)] = 1024
    exif_orientation: bool = True
    image_limits: ImageLimitFields = ImageLimitFields()
    gpu: str | None = None
    vision_engine: VisionEngineFields = VisionEngineFields()
    decoder_engine: DecoderEngineFields = DecoderEngineFields()
    cpu_engine: CpuEngineFields = CpuEngineFields()
    calibration: CalibrationFields = CalibrationFields()
    cpu_threads: Annotated[int, Field(ge=0)] = 0
    verify_prompts: Annotated[int, Field(ge=1, le=64)] = 3
    verify_tokens: Annotated[int, Field(ge=1, le=1024)] = 32
    gates: GateFields = GateFields()

    def max_seq_len(self, positions: int) -> int:
        """Tokens of prompt and answer together in the engine: what is asked for, at most the model's positions.

        Args:
            positions: `max_position_embeddings` of the checkpoint.
        """
        return min(self.max_input_len + self.max_output_len, positions)

    @property
    def vision_gpus(self) -> int:
        """GPUs with a vision engine, from GPU 0 of the first node on: Triton runs there alone."""
        gpus = min(self.tp * self.pp, self.gpus_per_node)
        return min(self.vision_engine.gpus or gpus, gpus)

    def tiles_per_image(self, *, use_thumbnail: bool) -> int:
        """Tiles of one image at most, thumbnail included, where the model's configuration has one."""
        from nvlm_trt.model.tiling import most_tiles  # it brings numpy

        return most_tiles(self.max_tiles, use_thumbnail=use_thumbnail)

    def tiles_per_request(self, *, use_thumbnail: bool) -> int:
        """Tiles of one request at most."""
        return self.max_images * self.tiles_per_image(use_thumbnail=use_thumbnail)

    def vision_max_tiles(self, tiles_per_request: int) -> int:
        """Tiles of one batch of the vision engine at most: a request's tiles spread over the GPUs that have one."""
        return self.vision_engine.max_tiles or -(-tiles_per_request // self.vision_gpus)

    @property
    def table_precision(self) -> Literal["fp32", "fp16", "bf16"]:
        """The type of the prompt table as it leaves the vision encoder: the one that the decoder takes.

        TensorRT-LLM demands its engine's own type; the cpu decoder takes float32 in every precision.
        """
        if self.target == "cpu":
            return "fp32"
        return "fp16" if self.decoder_precision == "fp16" else "bf16"

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.exclude_layers and (self.target == "gpu" or self.decoder_precision in ("fp32", "bf16")):
            raise ValueError(f"exclude_layers is for quantised decoders of cpu, seen: {sorted(self.exclude_layers)}")
        if self.target == "cpu":
            if self.vision_precision not in CPU_VISION:
                raise ValueError(
                    f"vision_precision {self.vision_precision} is for gpu; cpu has {', '.join(CPU_VISION)}"
                )
            if self.decoder_precision not in CPU_DECODER:
                raise ValueError(
                    f"decoder_precision {self.decoder_precision} is for gpu; cpu has {', '.join(CPU_DECODER)}"
                )
        elif self.decoder_precision == "fp32":
            raise ValueError("decoder_precision fp32 is for cpu; TensorRT-LLM runs bf16, fp16 and quantised decoders")
        elif self.decoder_precision == "int8":
            raise ValueError("decoder_precision int8 is for cpu; TensorRT-LLM has int8_sq")
        return self


def load_recipe(path: Path) -> BuildRecipe:
    """Read a recipe; its `name` is the file's stem unless it gives one.

    Raises:
        RecipeError: the file cannot be read, is no mapping, or a field is unknown or out of range.
    """
    try:
        raw = yaml_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("there is no such recipe", seen=path, fix="see build/recipes") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"the recipe cannot be read ({error})", seen=path) from None
    if not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping of fields", seen=f"{path.name}: {type(raw).__name__}")
    return parse_recipe({"name": path.stem, **raw}, path.name)


def parse_recipe(raw: dict[str, object], source: str, called: Mapping[str, str] = MappingProxyType({})) -> BuildRecipe:
    """Check the fields of a recipe.

    Args:
        raw: Fields by name.
        source: What to call the recipe in an error.
        called: What to call a field in it that the user knows by another name: an option, say.

    Raises:
        RecipeError: naming every field that is unknown or out of range.
    """
    try:
        return BuildRecipe.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(dict(fault), called) for fault in error.errors()]
        raise RecipeError(f"{source}: " + "; ".join(faults)) from None


def _fault(fault: dict[str, object], called: Mapping[str, str]) -> str:
    where = ".".join(str(part) for part in fault["loc"]) if isinstance(fault["loc"], tuple) else ""
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(where.rpartition(".")[0])
        near = difflib.get_close_matches(where.rsplit(".", 1)[-1], fields, n=1)
        return f"unknown field {where}" + (f", did you mean {near[0]}?" if near else f"; known: {', '.join(fields)}")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{called.get(where, where)}: {message}, seen: {fault['input']!r}" if where else message


def _fields_at(group: str) -> Iterable[str]:
    """Names of the fields of a group of the recipe; of the recipe itself where the group has no name."""
    if not group:
        return BuildRecipe.model_fields
    model = BuildRecipe.model_fields[group].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model.model_fields
