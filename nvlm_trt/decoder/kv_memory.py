"""How much memory a KV cache takes, and how many blocks a recipe's bound allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nvlm_trt.decoder.engine_config import MODEL_NAME, DecoderEngineConfig
from nvlm_trt.environment.memory import memory
from nvlm_trt.errors import DoesNotFitError

MIB: Final = 2**20

VALUE_BYTES: Final = {"f32": 4, "bf16": 2, "u8": 1}
"""Of a value of the cache, by OpenVINO's name of its type."""

U8_SCALE_BYTES: Final = 8
"""Scale and zero point of 8-bit values: one of each for a channel of a block's keys, and for a token's values."""


@dataclass(frozen=True, slots=True)
class KvCacheSettings:
    """How the KV cache is run: the recipe's `cpu_engine.kv_cache_*`.

    Attributes:
        mib: Memory that it takes at most; None has room for max_batch_size requests of max_seq_len, or for what half
            of the memory at hand holds where that is less. A block takes memory when it is first used.
        precision: "auto" keeps keys and values in the type that the decoder computes in, "u8" in 8 bits.
        reuse: Keep the blocks of earlier prompts and answers while there is room, and share those of running ones.
    """

    mib: int | None = None
    precision: Literal["auto", "u8"] = "auto"
    reuse: bool = True


def block_bytes(config: DecoderEngineConfig, dtype: str) -> int:
    """Bytes of a block in all layers, keys and values.

    Args:
        config: The engine's shapes.
        dtype: A key of VALUE_BYTES.
    """
    values = 2 * config.block_size * config.head_dim * VALUE_BYTES[dtype]
    scales = (config.block_size + config.head_dim) * U8_SCALE_BYTES if dtype == "u8" else 0
    return config.num_layers * config.num_kv_heads * (values + scales)


def num_blocks(config: DecoderEngineConfig, dtype: str, mib: int | None, available: int) -> int:
    """Blocks of the cache.

    Args:
        config: The engine's shapes.
        dtype: A key of VALUE_BYTES.
        mib: The recipe's bound, or None.
        available: Bytes of memory at hand.

    Raises:
        DoesNotFitError: the bound holds not even one block, or is more than the memory at hand.
    """
    size = block_bytes(config, dtype)
    if mib is None:
        longest = -(-config.max_seq_len // config.block_size)
        return min(config.max_batch_size * longest, max(longest, available // 2 // size))
    if mib * MIB < size:
        raise DoesNotFitError(
            "the KV cache holds not one block",
            seen=f"kv_cache_mib {mib}",
            expected=f"{-(-size // MIB)} or more ({config.block_size} tokens take {size:,} bytes)",
            fix="raise cpu_engine.kv_cache_mib in the recipe",
        )
    if mib * MIB > available:
        raise DoesNotFitError(
            "the KV cache is larger than the memory at hand",
            seen=f"kv_cache_mib {mib}",
            expected=f"at most {available // MIB}",
            fix="lower cpu_engine.kv_cache_mib in the recipe",
        )
    return mib * MIB // size


def memory_at_hand(directory: Path) -> int:
    """Bytes of memory that are left once the decoder in this directory has been loaded."""
    weights = (directory / MODEL_NAME).with_suffix(".bin")
    taken = weights.stat().st_size if weights.exists() else 0
    return max(0, memory().available - taken)
