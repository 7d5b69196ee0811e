"""The config.json of a TensorRT-LLM checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_trt.decoder.trtllm_config import STORED_DTYPES, TrtllmConfig, stored_dtype
from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.synthetic import like_72b


@pytest.fixture
def config() -> TrtllmConfig:
    return TrtllmConfig(like_72b(4).config.decoder, stored_dtype("bfloat16"), tp=4, pp=2)


def rewrite(directory: Path, config: TrtllmConfig, **changes: object) -> None:
    (directory / "config.json").write_text(json.dumps(config.to_dict() | changes), encoding="utf-8")


def test_it_says_what_tensorrt_llm_cannot_default_for_qwen2(config: TrtllmConfig) -> None:
    written = config.to_dict()
    expected = {
        "architecture": "Qwen2ForCausalLM",
        "qwen_type": "qwen2",
        "seq_length": 8192,
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_size": 128,
        "vocab_size": 152064,
        "hidden_act": "silu",
        "norm_epsilon": 1e-6,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 32768,
        "rotary_base": 1e6,
        "rotary_scaling": None,
        "use_parallel_embedding": False,
    }
    assert {key: written[key] for key in expected} == expected


def test_mapping_and_quantization_hold_nothing_that_a_release_might_not_know(config: TrtllmConfig) -> None:
    written = config.to_dict()
    assert written["mapping"] == {"world_size": 8, "tp_size": 4, "pp_size": 2}
    assert written["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": None}


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_what_is_written_reads_back(tmp_path: Path, dtype: str) -> None:
    config = TrtllmConfig(like_72b(4).config.decoder, stored_dtype(dtype), tp=2, pp=1)
    config.write(tmp_path)
    assert TrtllmConfig.read(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"seen: int4; expected: bfloat16 \| float16 \| float32"):
        stored_dtype("int4")


def test_every_fault_is_listed_at_once(tmp_path: Path, config: TrtllmConfig) -> None:
    rewrite(
        tmp_path,
        config,
        architecture="LlamaForCausalLM",
        hidden_act="gelu",
        num_hidden_layers=0,
        norm_epsilon="small",
        dtype="int8",
        head_size=64,
        rotary_scaling={"type": "dynamic", "factor": 3.0},
        mapping={"world_size": 3, "tp_size": 2, "pp_size": 2},
        quantization={"quant_algo": "W8A16"},
    )
    with pytest.raises(CheckpointError) as refusal:
        TrtllmConfig.read(tmp_path)
    text = str(refusal.value)
    for fault in (
        'architecture is "LlamaForCausalLM"',
        'hidden_act is "gelu"',
        "num_hidden_layers is 0",
        'norm_epsilon is "small"',
        'dtype is "int8"',
        "head_size is 64, expected 128",
        'rotary_scaling is {"type": "dynamic", "factor": 3.0}',
        "world_size is 3, expected 4",
        'quant_algo is "W8A16"',
    ):
        assert fault in text


@pytest.mark.parametrize("key", ["qwen_type", "vocab_size", "position_embedding_type", "rotary_base", "mapping"])
def test_a_needed_key_that_is_absent_is_named(tmp_path: Path, config: TrtllmConfig, key: str) -> None:
    written = config.to_dict()
    del written[key]
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{key} is null"):
        TrtllmConfig.read(tmp_path)


def test_keys_of_the_official_converter_are_no_fault(tmp_path: Path, config: TrtllmConfig) -> None:
    mapping = {"world_size": 8, "tp_size": 4, "pp_size": 2, "cp_size": 1, "gpus_per_node": 8, "moe_tp_size": 4}
    rewrite(tmp_path, config, mapping=mapping, moe_intermediate_size=0, runtime_defaults=None)
    assert TrtllmConfig.read(tmp_path) == config


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no TensorRT-LLM checkpoint"), ("{", "cannot be read"), ("[]", "not an object"), ("\udcff", "cannot be")],
)
def test_a_directory_without_a_readable_config_is_no_checkpoint(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=says):
        TrtllmConfig.read(tmp_path)
