"""The configuration of an NVLM-D checkpoint, read strictly from its config.json.

The released class defaults differ from the released file (ps_version, template, number of ViT layers ...), so nothing
here has a default: a key that matters and is absent is an error. The decoder is recognised by
``llm_config.architectures``; its ``model_type`` says "llama" in the released file and is ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.errors import CheckpointError
from nvlm_trt.parsed import json_value

PLAIN_ROPE_LIMIT = 32768
"""Tokens up to which the released `rope_scaling` (dynamic, factor 3) changes nothing (transformers 4.39.3 drops it)."""

MAX_TILES = 12
"""The most tiles a single image may be cut into; the released model was trained with up to 6."""

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """InternViT. `num_heads` counts the real heads only; dummy heads are found in the checkpoint."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile (32 for 448 / 14)."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Qwen2."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def query_width(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class NvlmConfig:
    """An NVLM-D model: vision encoder, projector and decoder."""

    vision: VisionConfig
    decoder: DecoderConfig
    downsample_ratio: float
    max_tiles: int
    use_thumbnail: bool

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.vision.image_size

    @property
    def shuffle(self) -> int:
        """Side of the square of patches that pixel shuffle folds into one visual token (2)."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile (256 = (448 / 14 / 2)^2)."""
        return (self.vision.patches_per_side // self.shuffle) ** 2

    @property
    def projector_in(self) -> int:
        """Width of a pixel-shuffled token, the projector's input."""
        return self.vision.hidden_size * self.shuffle**2

    @property
    def projector_hidden(self) -> int:
        """Width of the projector's hidden layer: the decoder's intermediate size (modeling_nvlm_d.py)."""
        return self.decoder.intermediate_size


def load_config(checkpoint_dir: Path) -> NvlmConfig:
    """Read and check `config.json` of a checkpoint directory.

    Raises:
        CheckpointError: the file is absent, is no JSON, or does not describe an NVLM-D model this project can run.
    """
    path = checkpoint_dir / "config.json"
    if not checkpoint_dir.is_dir():
        raise CheckpointError("there is no checkpoint directory", seen=checkpoint_dir, fix="give an NVLM-D directory")
    try:
        raw = json_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("the checkpoint has no config.json", seen=checkpoint_dir) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"config.json cannot be read ({error})", seen=path) from None
    if not isinstance(raw, dict):
        raise CheckpointError("config.json is not an object", seen=type(raw).__name__, expected="an object")
    return parse_config(raw)


def parse_config(raw: Json) -> NvlmConfig:
    """Check the members of a parsed config.json; every rule here states the value that the release carries.

    Raises:
        CheckpointError: a member is absent, of the wrong type, or asks for something that NVLM-D is not.
    """
    vision_raw, decoder_raw = _object(raw, "vision_config"), _object(raw, "llm_config")
    _expect_architecture(decoder_raw, "Qwen2ForCausalLM", "llm_config")
    _expect_architecture(vision_raw, "InternVisionModel", "vision_config")
    _expect(raw, "ps_version", "v2")
    _expect(raw, "select_layer", -1)
    _expect(raw, "template", "chatml")
    _expect(raw, "dynamic_image_size", True)
    _expect(raw, "min_dynamic_patch", 1)
    _expect(vision_raw, "norm_type", "rms_norm")
    _expect(vision_raw, "hidden_act", "gelu")
    _expect(vision_raw, "qk_normalization", True)
    _expect(vision_raw, "qkv_bias", False)
    _expect(decoder_raw, "hidden_act", "silu")
    for absent in ("tie_word_embeddings", "use_sliding_window"):
        _expect({absent: False, **decoder_raw}, absent, False)  # Qwen2's own default
    vision = VisionConfig(
        hidden_size=_integer(vision_raw, "hidden_size"),
        intermediate_size=_integer(vision_raw, "intermediate_size"),
        num_layers=_integer(vision_raw, "num_hidden_layers"),
        num_heads=_integer(vision_raw, "num_attention_heads"),
        image_size=_integer(vision_raw, "image_size"),
        patch_size=_integer(vision_raw, "patch_size"),
        layer_norm_eps=_number(vision_raw, "layer_norm_eps"),
    )
    decoder = DecoderConfig(
        hidden_size=_integer(decoder_raw, "hidden_size"),
        intermediate_size=_integer(decoder_raw, "intermediate_size"),
        num_layers=_integer(decoder_raw, "num_hidden_layers"),
        num_heads=_integer(decoder_raw, "num_attention_heads"),
        num_kv_heads=_integer(decoder_raw, "num_key_value_heads"),
        vocab_size=_integer(decoder_raw, "vocab_size"),
        rms_norm_eps=_number(decoder_raw, "rms_norm_eps"),
        rope_theta=_number(decoder_raw, "rope_theta"),
        max_position_embeddings=_integer(decoder_raw, "max_position_embeddings"),
    )
    config = NvlmConfig(
        vision=vision,
        decoder=decoder,
        downsample_ratio=_number(raw, "downsample_ratio"),
        max_tiles=_integer(raw, "max_dynamic_patch"),
        use_thumbnail=_boolean(raw, "use_thumbnail"),
    )
    _check_shapes(config, raw)
    _check_rope(decoder, decoder_raw)
    return config


def _check_shapes(config: NvlmConfig, raw: Json) -> None:
    vision, decoder = config.vision, config.decoder
    _divides("vision_config.num_attention_heads", vision.num_heads, vision.hidden_size)
    _divides("vision_config.patch_size", vision.patch_size, vision.image_size)
    _divides("llm_config.num_attention_heads", decoder.num_heads, decoder.hidden_size)
    _divides("llm_config.num_key_value_heads", decoder.num_kv_heads, decoder.num_heads)
    if decoder.head_dim % 2:
        raise CheckpointError("the decoder's head width is odd, RoPE needs pairs", seen=decoder.head_dim)
    head_dim = _object(raw, "llm_config").get("head_dim")
    if head_dim is not None and head_dim != decoder.head_dim:
        raise CheckpointError(
            "llm_config.head_dim is not hidden / heads, as in Qwen2", seen=head_dim, expected=decoder.head_dim
        )
    if not 1 <= 1 / config.downsample_ratio < math.inf or abs(1 / config.downsample_ratio - config.shuffle) > 1e-9:
        raise CheckpointError("downsample_ratio is not 1 / n", seen=config.downsample_ratio, expected=0.5)
    _divides("1 / downsample_ratio", config.shuffle, vision.patches_per_side)
    forced = raw.get("force_image_size")
    if forced is not None and forced != vision.image_size:
        raise CheckpointError(
            "force_image_size differs from vision_config.image_size: the position embedding has one size",
            seen=forced,
            expected=vision.image_size,
        )
    if config.max_tiles > MAX_TILES:
        raise CheckpointError("max_dynamic_patch is too large", seen=config.max_tiles, expected=f"1 to {MAX_TILES}")


def _check_rope(decoder: DecoderConfig, decoder_raw: Json) -> None:
    scaling = decoder_raw.get("rope_scaling")
    if not scaling:
        return
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind != "dynamic":
        raise CheckpointError(
            "this rope_scaling is not supported", seen=json.dumps(scaling), expected='null, or of type "dynamic"'
        )
    if decoder.max_position_embeddings > PLAIN_ROPE_LIMIT:
        raise CheckpointError(
            "rope_scaling beyond 32,768 positions is not supported (up to there it changes nothing and is ignored)",
            seen=f"rope_scaling {json.dumps(scaling)}, max_position_embeddings {decoder.max_position_embeddings}",
            expected=f"max_position_embeddings <= {PLAIN_ROPE_LIMIT}, or rope_scaling null",
        )


def _expect_architecture(raw: Json, name: str, part: str) -> None:
    architectures = raw.get("architectures")
    if architectures != [name]:
        raise CheckpointError(f"{part}.architectures is not NVLM-D's", seen=architectures, expected=[name])


def _expect(raw: Json, key: str, value: object) -> None:
    if key not in raw or raw[key] != value or type(raw[key]) is not type(value):
        raise CheckpointError(f"config.json: {key} is not NVLM-D's", seen=raw.get(key, "absent"), expected=value)


def _object(raw: Json, key: str) -> Json:
    value = raw.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"config.json: {key} is not an object", seen=value if key in raw else "absent")
    return value


def _integer(raw: Json, key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json: {key} is not a positive whole number", seen=value if key in raw else "absent"
        )
    return value


def _number(raw: Json, key: str) -> float:
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CheckpointError(f"config.json: {key} is not a positive number", seen=value if key in raw else "absent")
    return float(value)


def _boolean(raw: Json, key: str) -> bool:
    value = raw.get(key)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is not true or false", seen=value if key in raw else "absent")
    return value


def _divides(name: str, divisor: int, value: int) -> None:
    if value % divisor:
        raise CheckpointError(f"config.json: {name} does not divide", seen=f"{value} % {divisor} = {value % divisor}")
