"""The KV cache keeps within the memory that the recipe gives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.kv_memory import MIB, block_bytes, memory_at_hand, num_blocks
from nvlm_trt.errors import DoesNotFitError

GIB = 2**30


def config(**change: int) -> DecoderEngineConfig:
    """The shapes of Qwen2-0.5B."""
    shapes = {
        "format": 1, "vocab_size": 151_936, "hidden_size": 896, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2,
        "head_dim": 64, "block_size": 32, "max_batch_size": 32, "max_seq_len": 9216, "max_prompt_table_rows": 7168,
    }  # fmt: skip
    return DecoderEngineConfig(precision="bf16", **(shapes | change))


def test_a_block_has_keys_and_values_of_every_layer():
    assert block_bytes(config(), "bf16") == 24 * 2 * 2 * 32 * 64 * 2
    assert block_bytes(config(), "f32") == 2 * block_bytes(config(), "bf16")


def test_eight_bit_values_bring_their_scales():
    keys, values = 2 * 40 * 64, 2 * 32 * 72  # as OpenVINO shapes its caches: a scale a channel, and a scale a token
    assert block_bytes(config(), "u8") == 24 * (keys + values)


def test_a_bound_is_kept_to_the_block():
    blocks = num_blocks(config(), "bf16", 100, 8 * GIB)
    size = block_bytes(config(), "bf16")
    assert blocks * size <= 100 * MIB < (blocks + 1) * size


def test_without_a_bound_all_requests_fit_at_their_longest():
    assert num_blocks(config(), "bf16", None, 64 * GIB) == 32 * 288


def test_without_a_bound_half_of_the_memory_at_hand_is_the_bound_but_one_request_always_fits():
    assert num_blocks(config(), "bf16", None, 2 * GIB) == GIB // block_bytes(config(), "bf16")
    assert num_blocks(config(), "bf16", None, 0) == 288


def test_a_bound_below_one_block_or_beyond_the_memory_is_refused_with_the_figures():
    with pytest.raises(DoesNotFitError, match=r"not one block; seen: kv_cache_mib 1; expected: 2 or more .32 tokens"):
        num_blocks(config(num_layers=80), "bf16", 1, GIB)
    with pytest.raises(DoesNotFitError, match="memory at hand; seen: kv_cache_mib 2048; expected: at most 1024"):
        num_blocks(config(), "bf16", 2048, GIB)


def test_the_weights_are_taken_from_the_memory_at_hand(tmp_path: Path):
    with (tmp_path / "model.bin").open("wb") as file:
        file.truncate(10**13)
    assert memory_at_hand(tmp_path) == 0
