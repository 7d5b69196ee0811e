"""Random checkpoints in the layout of the release.

Values are drawn so that activations keep a size near one and logits spread: a wrong slice or a skipped image changes
the answer. The words of such a model mean nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.errors import UserError
from nvlm_trt.model.config import DecoderConfig, NvlmConfig, VisionConfig
from nvlm_trt.model.mini_tokenizer import mini_merges, tokenizer_size
from nvlm_trt.model.release import ReleaseSpec, write_release
from nvlm_trt.model.safetensors_stream import TensorSpec, torch_dtype
from nvlm_trt.progress import Progress

if TYPE_CHECKING:  # shapes are asked for where nothing is drawn
    import torch

BLOCK_VALUES = 1 << 24
"""Values drawn at a time: bounds the memory at 64 MiB."""

NORM_PARTS = ("norm.weight", "layernorm.weight", "norm1.weight", "norm2.weight", "mlp1.0.weight", "ls1", "ls2")

GAINS = {"lm_head": 4.0, "q_proj": 2.0, "k_proj": 2.0, "o_proj": 2.0, "down_proj": 2.0}
"""Deviations above 1 / sqrt(inputs): attention that picks out tokens, so that an answer doesn't repeat one for ever."""


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
) -> ReleaseSpec:
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
        max_shard_bytes: As in ReleaseSpec.
    """
    vision = _vision(16 * vision_heads, 32 * vision_heads, vision_layers, vision_heads, tile_size=tile_size)
    decoder = _decoder(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=decoder_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab_size or -(-tokenizer_size(mini_merges()) // 64) * 64,
    )
    return ReleaseSpec(_with_parts(vision, decoder), dummy_heads, max_shard_bytes)


def like_72b(layers: int) -> ReleaseSpec:
    """The true widths of NVLM-D-72B with `layers` vision blocks and as many decoder layers (of 45 and 80).

    Raises:
        UserError: `layers` is not 1 to 45.
    """
    if not 1 <= layers <= 45:
        raise UserError("the number of layers is out of range", seen=layers, expected="1 to 45")
    vision = _vision(3200, 12800, layers, heads=25)
    decoder = _decoder(
        hidden_size=8192,
        intermediate_size=29568,
        num_layers=layers,
        num_heads=64,
        num_kv_heads=8,
        vocab_size=152064,
    )
    return ReleaseSpec(_with_parts(vision, decoder), 7, 4_000_000_000)


def small_spec() -> ReleaseSpec:
    """0.9 B parameters in the shapes of InternViT-300M and Qwen2-0.5B, for figures of speed on a laptop."""
    vision = _vision(1024, 4096, layers=24, heads=16)
    decoder = _decoder(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        vocab_size=151936,
    )
    return ReleaseSpec(_with_parts(vision, decoder), 4, 1_000_000_000)


def write_synthetic(out: Path, spec: ReleaseSpec, *, seed: int = 0, progress: Progress | None = None) -> None:
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


def _vision(hidden_size: int, intermediate_size: int, layers: int, heads: int, *, tile_size: int = 448) -> VisionConfig:
    """A vision encoder that is the release's but for its sizes."""
    return VisionConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=layers,
        num_heads=heads,
        image_size=tile_size,
        patch_size=14,
        layer_norm_eps=1e-6,
    )


def _decoder(
    *, hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, num_kv_heads: int, vocab_size: int
) -> DecoderConfig:
    """A decoder that is the release's but for its sizes."""
    return DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
    )


def _with_parts(vision: VisionConfig, decoder: DecoderConfig) -> NvlmConfig:
    return NvlmConfig(vision, decoder, downsample_ratio=0.5, max_tiles=6, use_thumbnail=True)


def _values(tensor: TensorSpec, spec: ReleaseSpec, seed: int) -> Iterator[torch.Tensor]:
    """The values of one tensor in blocks of whole rows; each tensor has a generator of its own."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {tensor.name}".encode()))  # takes 32 bits
    mean, deviation = _distribution(tensor)
    rows, *rest = tensor.shape
    width = math.prod(rest)
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        block = torch.empty(count, *rest).normal_(mean, deviation, generator=generator)
        _zero_dummy_heads(block, tensor, spec, start)
        yield block.to(torch_dtype(tensor.dtype))


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


def _zero_dummy_heads(block: torch.Tensor, tensor: TensorSpec, spec: ReleaseSpec, start: int) -> None:
    """Zero what belongs to dummy heads, as the converter that padded the release did (internvit_converter.py)."""
    import torch

    real = spec.config.vision.hidden_size
    if tensor.name.endswith("attn.qkv.weight"):
        rows = torch.arange(start, start + len(block)) % (tensor.shape[0] // 3)
        block[rows >= real] = 0
    elif tensor.name.endswith("attn.proj.weight"):
        block[:, real:] = 0
    elif tensor.name.endswith(("q_norm.weight", "k_norm.weight")):
        block[max(0, real - start) :] = 0


SIZES = {"tiny": tiny_spec, "small": small_spec}
"""What ``synth:tiny`` and ``synth:small`` make."""
