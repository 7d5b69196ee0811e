"""The stage decoder-compile on the cpu target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.decoder.build_cpu import build_decoder_cpu, engine_bytes
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import CheckpointError, EngineError, RecipeError

LIMITS = {"precision": "fp32", "max_batch_size": 2, "max_seq_len": 64, "max_prompt_table_rows": 0}


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (4, 2), (8, 1)])
def test_any_sharding_of_the_same_weights_gives_the_same_engine(compiled: Callable[..., Path], tp: int, pp: int):
    one, sharded = compiled("fp32"), compiled("fp32", tp, pp)
    for name in ("model.xml", "model.bin", "config.json"):
        assert (one / name).read_bytes() == (sharded / name).read_bytes(), name


def test_config_json_states_shapes_and_limits(compiled: Callable[..., Path]):
    config = DecoderEngineConfig.read(compiled("bf16"))
    assert (config.precision, config.hidden_size, config.num_layers) == ("bf16", 64, 3)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 8)
    assert (config.max_batch_size, config.max_seq_len, config.max_prompt_table_rows) == (8, 512, 64)


def test_progress_ends_at_the_bytes_that_the_preflight_foresees(converted, tmp_path):
    seen: list[tuple[int, int]] = []
    build_decoder_cpu(converted(1, 1), tmp_path, **LIMITS, progress=lambda done, total: seen.append((done, total)))
    total = engine_bytes(TrtllmCheckpoint.open(converted(1, 1)).decoder, "fp32")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)
    assert total <= (tmp_path / "model.bin").stat().st_size < 1.2 * total


def test_int8_weights_are_a_quarter_of_fp32(compiled: Callable[..., Path]):
    decoder = DecoderEngineConfig.read(compiled("fp32"))
    embedding = decoder.vocab_size * decoder.hidden_size
    fp32, int8 = ((compiled(name) / "model.bin").stat().st_size for name in ("fp32", "int8_wo"))
    assert int8 < (fp32 - 4 * embedding) / 3 + 2 * embedding


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp8"}, r"fp8.*fp32 \| bf16 \| int8_wo \| int8 \| int4_wo"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_seq_len": 1}, "max_seq_len"),
        ({"max_prompt_table_rows": -1}, "max_prompt_table_rows"),
        ({"max_seq_len": 10**9}, "longer than the model's positions"),
    ],
)
def test_impossible_limits_are_refused_before_anything_is_written(converted, tmp_path, change, words):
    with pytest.raises(RecipeError, match=words):
        build_decoder_cpu(converted(1, 1), tmp_path / "engine", **(LIMITS | change))
    assert not (tmp_path / "engine").exists()


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        build_decoder_cpu(tmp_path / "nothing", tmp_path / "engine", **LIMITS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "another format"),
        ({"block_size": 16}, "other blocks"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_config_of_another_kind_is_refused(compiled, tmp_path, change, words):
    raw = json.loads((compiled("fp32") / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(EngineError, match=words):
        DecoderEngineConfig.read(tmp_path)


def test_a_config_that_is_missing_or_no_json_is_refused(tmp_path):
    with pytest.raises(EngineError, match="no compiled decoder"):
        DecoderEngineConfig.read(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(EngineError, match="cannot be read"):
        DecoderEngineConfig.read(tmp_path)
