"""The config.json of a TensorRT-LLM checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_trt.decoder.precision import PRECISIONS, STORED_DTYPES, decoder_precision
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.synthetic import like_72b


@pytest.fixture
def config() -> TrtllmConfig:
    return TrtllmConfig(like_72b(4).config.decoder, STORED_DTYPES["bfloat16"], tp=4, pp=2)


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
    config = TrtllmConfig(like_72b(4).config.decoder, STORED_DTYPES[dtype], tp=2, pp=1)
    config.write(tmp_path)
    assert TrtllmConfig.read(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("kv_cache", ["auto", "model", "fp8", "int8"])
@pytest.mark.parametrize("tp", [1, 4])
def test_every_precision_reads_back(tmp_path: Path, name: str, kv_cache: str, tp: int) -> None:
    precision, decoder = decoder_precision(name, kv_cache=kv_cache, group_size=64), like_72b(4).config.decoder
    config = TrtllmConfig.of(decoder, precision, tp=tp, pp=2, gpus_per_node=4)
    config.write(tmp_path)
    seen = TrtllmConfig.read(tmp_path)
    assert seen == config
    assert (seen.precision, seen.unpadded) == (precision, decoder)


def test_a_padded_mlp_is_what_tensorrt_llm_reads_and_its_real_width_stands_beside() -> None:
    decoder = like_72b(4).config.decoder
    written = TrtllmConfig.of(decoder, PRECISIONS["int8_wo"], tp=4, pp=1).to_dict()
    assert (written["intermediate_size"], written["unpadded_intermediate_size"]) == (29696, 29568)
    assert written["quantization"] == {"quant_algo": "W8A16", "kv_cache_quant_algo": None}
    unpadded = TrtllmConfig.of(decoder, PRECISIONS["int8_wo"], tp=2, pp=1).to_dict()
    assert unpadded["intermediate_size"] == 29568
    assert "unpadded_intermediate_size" not in unpadded


def test_a_checkpoint_padded_by_somebody_else_needs_no_key_of_ours(tmp_path: Path) -> None:
    decoder = replace(like_72b(4).config.decoder, intermediate_size=29696)
    rewrite(tmp_path, TrtllmConfig.of(decoder, PRECISIONS["int4_awq"], tp=4, pp=1))
    assert TrtllmConfig.read(tmp_path).unpadded.intermediate_size == 29696


def test_an_mlp_that_the_kernels_do_not_take_is_a_fault(tmp_path: Path, config: TrtllmConfig) -> None:
    rewrite(tmp_path, config, quantization={"quant_algo": "W4A16"})
    with pytest.raises(CheckpointError, match="intermediate_size is 29568, expected 29696"):
        TrtllmConfig.read(tmp_path)
    rewrite(tmp_path, config, quantization={"quant_algo": "FP8"}, unpadded_intermediate_size=29567)
    with pytest.raises(CheckpointError, match="intermediate_size is 29568, expected 29567"):
        TrtllmConfig.read(tmp_path)


def test_every_fault_of_the_quantization_is_listed(tmp_path: Path, config: TrtllmConfig) -> None:
    quantization = {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": "NVFP4",
        "group_size": 32,
        "has_zero_point": True,
        "exclude_modules": ["*mlp.proj"],
    }
    rewrite(tmp_path, config, quantization=quantization, intermediate_size=29696)
    with pytest.raises(CheckpointError) as refusal:
        TrtllmConfig.read(tmp_path)
    for fault in (
        'kv_cache_quant_algo is "NVFP4", expected null | FP8 | INT8',
        "group_size is 32, expected 64 | 128",
        "has_zero_point is true, expected false",
        "pre_quant_scale is null, expected true",
        'exclude_modules is ["*mlp.proj"], expected null',
    ):
        assert fault in str(refusal.value)


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
        quantization={"quant_algo": "NVFP4"},
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
        'quant_algo is "NVFP4", expected null | FP8 | W8A8_SQ_PER_CHANNEL | W8A16 | W4A16 | W4A16_AWQ',
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


def test_defaults_that_official_converters_write_out_are_no_fault(tmp_path: Path) -> None:
    config = TrtllmConfig.of(like_72b(4).config.decoder, PRECISIONS["int8_sq"], tp=4, pp=1)
    defaults = {"group_size": 128, "smoothquant_val": 0.5, "clamp_val": None, "exclude_modules": None}
    rewrite(tmp_path, config, quantization=config.quantization.to_dict() | defaults)
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
