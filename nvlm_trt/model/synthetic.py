"""Random checkpoints in the real layout: names, shapes, mixed dtypes, dummy heads, shards and config of the release.

Values are drawn so that activations keep a size near one and logits spread: a wrong slice or a skipped image changes
the answer. The words of such a model mean nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_trt.errors import DoesNotFitError, UserError
from nvlm_trt.model.checkpoint import INDEX_NAME, SINGLE_NAME
from nvlm_trt.model.config import DecoderConfig, NvlmConfig, VisionConfig
from nvlm_trt.model.mini_tokenizer import mini_merges, tokenizer_size, write_tokenizer
from nvlm_trt.model.safetensors_stream import TORCH_DTYPES, SafetensorsStream, TensorSpec
from nvlm_trt.model.tensors import Shape, decoder_tensors, projector_tensors, vision_tensors
from nvlm_trt.progress import Progress

BLOCK_VALUES = 1 << 24
"""Values drawn at a time: bounds the memory at 64 MiB."""

F32_PARTS = ("q_proj.", "k_proj.", "v_proj.", "attn.qkv.", "attn.proj.weight", "q_norm.", "k_norm.")
"""Parts of the names of tensors that the release stores in float32; all others are bfloat16."""

NORM_PARTS = ("norm.weight", "layernorm.weight", "norm1.weight", "norm2.weight", "mlp1.0.weight", "ls1", "ls2")

GAINS = {"lm_head": 4.0, "q_proj": 2.0, "k_proj": 2.0, "o_proj": 2.0, "down_proj": 2.0}
"""Deviations above 1 / sqrt(inputs): attention that picks out tokens, so that an answer doesn't repeat one for ever."""


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """What to make: a configuration, dummy heads in the vision encoder, and the most bytes of tensors in a shard.

    A `max_shard_bytes` of None makes a single model.safetensors without an index.
    """

    config: NvlmConfig
    dummy_heads: int
    max_shard_bytes: int | None


def tiny_spec(
    *,
    tile_size: int = 448,
    vision_heads: int = 5,
    vision_layers: int = 2,
    dummy_heads: int = 3,
    hidden_size: int = 128,
    intermediate_size: int = 320,
    decoder_layers: int = 4,
    heads: int = 8,
    kv_heads: int = 4,
    vocab_size: int | None = None,
    max_shard_bytes: int | None = 400_000,
) -> SyntheticSpec:
    """A checkpoint of a few megabytes with real tiles and token counts, in several shards.

    Args:
        tile_size: Side of a tile; 448 gives 256 visual tokens, 112 gives 16.
        vision_heads: Real ViT heads, 16 wide each.
        vision_layers: ViT blocks.
        dummy_heads: All-zero heads added to each block.
        hidden_size: Width of the decoder.
        intermediate_size: Width of its MLP, and of the projector's hidden layer.
        decoder_layers: Decoder layers.
        heads: Query heads of the decoder.
        kv_heads: Its key and value heads.
        vocab_size: Embedding rows; None rounds the tokenizer's size up to a multiple of 64.
        max_shard_bytes: As in SyntheticSpec.
    """
    vision = VisionConfig(
        hidden_size=16 * vision_heads,
        intermediate_size=32 * vision_heads,
        num_layers=vision_layers,
        num_heads=vision_heads,
        image_size=tile_size,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    decoder = DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=decoder_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab_size or -(-tokenizer_size(mini_merges()) // 64) * 64,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
    )
    return SyntheticSpec(_with_parts(vision, decoder), dummy_heads, max_shard_bytes)


def like_72b(layers: int) -> SyntheticSpec:
    """The true widths of NVLM-D-72B with `layers` vision blocks and as many decoder layers (of 45 and 80).

    Raises:
        UserError: `layers` is not 1 to 45.
    """
    if not 1 <= layers <= 45:
        raise UserError("the number of layers is out of range", seen=layers, expected="1 to 45")
    vision = VisionConfig(
        hidden_size=3200,
        intermediate_size=12800,
        num_layers=layers,
        num_heads=25,
        image_size=448,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    decoder = DecoderConfig(
        hidden_size=8192,
        intermediate_size=29568,
        num_layers=layers,
        num_heads=64,
        num_kv_heads=8,
        vocab_size=152064,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
    )
    return SyntheticSpec(_with_parts(vision, decoder), 7, 4_000_000_000)


def write_synthetic(out: Path, spec: SyntheticSpec, *, seed: int = 0, progress: Progress | None = None) -> None:
    """Write a synthetic checkpoint directory: equal specs and seeds give equal bytes.

    Args:
        out: The directory to make; nothing may be there. It appears whole, by renaming.
        spec: What to make.
        seed: Seed of all values.
        progress: Told the bytes written.

    Raises:
        UserError: there is something at `out`.
        DoesNotFitError: the disk has too little room.
    """
    write_release(out, spec, lambda tensor: _values(tensor, spec, seed), mini_merges(), progress=progress)


def write_release(
    out: Path,
    spec: SyntheticSpec,
    values: Callable[[TensorSpec], Iterable[torch.Tensor]],
    merges: str,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint directory in the layout of the release.

    Args:
        out: The directory to make; nothing may be there. It appears whole, by renaming.
        spec: Configuration, dummy heads and shard size.
        values: The values of a tensor, in blocks of whole rows.
        merges: The tokenizer's merges.txt.
        progress: Told the bytes written.

    Raises:
        UserError: there is something at `out`.
        DoesNotFitError: the disk has too little room.
    """
    if out.exists():
        raise UserError("there is something at the output already", seen=out, fix="remove it or name another directory")
    specs = _tensor_specs(spec)
    needed = sum(tensor.nbytes for tensor in specs)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < needed * 1.01:
        raise DoesNotFitError("the disk is too small for the checkpoint", seen=f"{free} bytes free", expected=needed)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_weights(partial, spec, specs, values, progress or (lambda done, total: None))
        config = json.dumps(release_config(spec.config), indent=2) + "\n"
        (partial / "config.json").write_text(config, encoding="utf-8")
        write_tokenizer(partial, merges)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def release_config(config: NvlmConfig) -> dict[str, object]:
    """A config.json with the members of the released one that say something, its traps included.

    The traps: a decoder whose model_type reads "llama", and a rope_scaling that must be ignored up to 32k.
    """
    vision, decoder = config.vision, config.decoder
    return {
        "architectures": ["NVLM_D"],
        "model_type": "NVLM_D",
        "torch_dtype": "bfloat16",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size,
        "max_dynamic_patch": config.max_tiles,
        "min_dynamic_patch": config.min_tiles,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "use_thumbnail": config.use_thumbnail,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "llama",
            "attention_bias": True,
            "mlp_bias": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "max_position_embeddings": decoder.max_position_embeddings,
            "num_attention_heads": decoder.num_heads,
            "num_hidden_layers": decoder.num_layers,
            "num_key_value_heads": decoder.num_kv_heads,
            "rms_norm_eps": decoder.rms_norm_eps,
            "rope_scaling": {"factor": 3.0, "type": "dynamic"},
            "rope_theta": decoder.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": decoder.vocab_size,
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "norm_type": "rms_norm",
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
            "qk_normalization": True,
            "qkv_bias": False,
            "torch_dtype": "bfloat16",
        },
    }


def _with_parts(vision: VisionConfig, decoder: DecoderConfig) -> NvlmConfig:
    return NvlmConfig(vision, decoder, downsample_ratio=0.5, min_tiles=1, max_tiles=6, use_thumbnail=True)


def _tensor_specs(spec: SyntheticSpec) -> list[TensorSpec]:
    """All tensors in the release's shard order: embedding and projector, decoder layers, head, vision encoder."""
    decoder = decoder_tensors(spec.config)
    embedding = next(iter(decoder))
    ordered: dict[str, Shape] = {
        embedding: decoder.pop(embedding),
        **projector_tensors(spec.config),
        **decoder,
        **vision_tensors(spec.config, spec.dummy_heads),
    }
    return [
        TensorSpec(name, "F32" if any(part in name for part in F32_PARTS) else "BF16", shape)
        for name, shape in ordered.items()
    ]


def _write_weights(
    directory: Path,
    spec: SyntheticSpec,
    specs: Sequence[TensorSpec],
    values: Callable[[TensorSpec], Iterable[torch.Tensor]],
    progress: Progress,
) -> None:
    shards = list(_split(specs, spec.max_shard_bytes))
    total = sum(tensor.nbytes for tensor in specs)
    done = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_NAME if spec.max_shard_bytes is None else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsStream(directory / file, shard) as stream:
            for tensor in shard:
                for block in values(tensor):
                    stream.write_part(tensor.name, block)
                    done += block.nbytes
                    progress(done, total)
                weight_map[tensor.name] = file
    if spec.max_shard_bytes is not None:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(specs: Sequence[TensorSpec], max_bytes: int | None) -> Iterator[list[TensorSpec]]:
    """Fill shards in order, wide dtypes first within a shard as the safetensors library writes them."""
    shard: list[TensorSpec] = []
    size = 0
    for tensor in specs:
        if shard and max_bytes is not None and size + tensor.nbytes > max_bytes:
            yield _sorted(shard)
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield _sorted(shard)


def _sorted(shard: list[TensorSpec]) -> list[TensorSpec]:
    return sorted(shard, key=lambda tensor: (tensor.dtype != "F32", tensor.name))


def _values(tensor: TensorSpec, spec: SyntheticSpec, seed: int) -> Iterator[torch.Tensor]:
    """The values of one tensor in blocks of whole rows; each tensor has a generator of its own."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {tensor.name}".encode()))  # takes 32 bits
    mean, deviation = _distribution(tensor)
    rows, *rest = tensor.shape
    width = math.prod(rest)
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        block = torch.empty(count, *rest).normal_(mean, deviation, generator=generator)
        _zero_dummy_heads(block, tensor, spec, start)
        yield block.to(TORCH_DTYPES[tensor.dtype])


def _distribution(tensor: TensorSpec) -> tuple[float, float]:
    """Mean and deviation: norms near one, LayerScale near a half, matrices by their inputs, biases small."""
    name = tensor.name
    if name.endswith(("ls1", "ls2")):
        return 0.5, 0.1
    if any(name.endswith(part) for part in NORM_PARTS) or "q_norm" in name or "k_norm" in name:
        return 1.0, 0.1
    if name.endswith(("embedding", "embed_tokens.weight")):
        return 0.0, 0.7
    if name.endswith("bias"):
        return 0.0, 0.1
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return 0.0, gain / math.sqrt(math.prod(tensor.shape[1:]))


def _zero_dummy_heads(block: torch.Tensor, tensor: TensorSpec, spec: SyntheticSpec, start: int) -> None:
    """Zero what belongs to dummy heads, as the converter that padded the release did (internvit_converter.py)."""
    real = spec.config.vision.hidden_size
    if tensor.name.endswith("attn.qkv.weight"):
        rows = torch.arange(start, start + len(block)) % (tensor.shape[0] // 3)
        block[rows >= real] = 0
    elif tensor.name.endswith("attn.proj.weight"):
        block[:, real:] = 0
    elif tensor.name.endswith(("q_norm.weight", "k_norm.weight")):
        block[max(0, real - start) :] = 0


TINY = tiny_spec()
"""The default: what the default recipe builds until a trained miniature exists."""
