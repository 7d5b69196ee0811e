"""An engine is only taken if it is complete and what trtllm-build was told to build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.decoder.trtllm_build_command import EngineSettings
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_engine import check_engine
from nvlm_trt.errors import BuildError
from nvlm_trt.model.synthetic import like_72b

SETTINGS = EngineSettings(
    max_batch_size=8,
    max_seq_len=9216,
    max_num_tokens=8192,
    max_multimodal_len=14336,
    gemm_plugin="disable",
    paged_context_fmha=True,
    fp8_context_fmha=True,
    tokens_per_block=32,
    multiple_profiles=False,
)
CONFIG = TrtllmConfig.of(like_72b(2).config.decoder, decoder_precision("fp8"), tp=2, pp=1)

WRITTEN: dict[str, Any] = {
    "version": "1.2.1",
    "pretrained_config": {
        "architecture": "Qwen2ForCausalLM",
        "dtype": "bfloat16",
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "logits_dtype": "float32",
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1, "cp_size": 1, "gpus_per_node": 8},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "group_size": 128},
    },
    "build_config": {
        "max_input_len": 1024,
        "max_seq_len": 9216,
        "max_batch_size": 8,
        "max_beam_width": 1,
        "max_num_tokens": 8192,
        "opt_num_tokens": 8,
        "max_prompt_embedding_table_size": 14336,
        "kv_cache_type": "PAGED",
        "plugin_config": {
            "dtype": "bfloat16",
            "gpt_attention_plugin": "auto",
            "gemm_plugin": None,
            "nccl_plugin": "bfloat16",
            "context_fmha": True,
            "paged_kv_cache": True,
            "remove_input_padding": True,
            "tokens_per_block": 32,
            "use_paged_context_fmha": True,
            "use_fp8_context_fmha": True,
            "multiple_profiles": False,
        },
    },
}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """What trtllm-build leaves for CONFIG and SETTINGS; its engines are no real ones."""
    for rank in range(2):
        (tmp_path / f"rank{rank}.engine").write_bytes(b"plan")
    (tmp_path / "config.json").write_text(json.dumps(WRITTEN), encoding="utf-8")
    return tmp_path


def change(engine: Path, place: str, value: object) -> None:
    *groups, name = place.split(".")
    raw = json.loads((engine / "config.json").read_text(encoding="utf-8"))
    group = raw
    for key in groups:
        group = group[key]
    assert group[name] != value
    group[name] = value
    (engine / "config.json").write_text(json.dumps(raw), encoding="utf-8")


def test_an_engine_as_it_was_asked_for_is_taken(engine: Path) -> None:
    check_engine(engine, SETTINGS, CONFIG)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pretrained_config.architecture", "LlamaForCausalLM"),
        ("pretrained_config.dtype", "float16"),
        ("pretrained_config.logits_dtype", "float16"),
        ("pretrained_config.num_attention_heads", 32),
        ("pretrained_config.num_key_value_heads", 64),
        ("pretrained_config.vocab_size", 151655),
        ("pretrained_config.hidden_size", 4096),
        ("pretrained_config.intermediate_size", 29696),
        ("pretrained_config.num_hidden_layers", 80),
        ("pretrained_config.mapping.world_size", 4),
        ("pretrained_config.mapping.tp_size", 1),
        ("pretrained_config.mapping.pp_size", 2),
        ("pretrained_config.quantization.quant_algo", None),
        ("pretrained_config.quantization.kv_cache_quant_algo", "INT8"),
        ("build_config.max_batch_size", 2048),
        ("build_config.max_seq_len", 32768),
        ("build_config.max_num_tokens", 4096),
        ("build_config.max_beam_width", 4),
        ("build_config.max_prompt_embedding_table_size", 0),
        ("build_config.kv_cache_type", "CONTINUOUS"),
        ("build_config.plugin_config.use_paged_context_fmha", False),
        ("build_config.plugin_config.tokens_per_block", 64),
        ("build_config.plugin_config.use_fp8_context_fmha", False),
        ("build_config.plugin_config.context_fmha", False),
        ("build_config.plugin_config.remove_input_padding", False),
        ("build_config.plugin_config.multiple_profiles", True),
        ("build_config.plugin_config.gemm_plugin", "bfloat16"),
        ("build_config.plugin_config.gpt_attention_plugin", None),
        ("build_config.plugin_config.nccl_plugin", None),
    ],
)
def test_whatever_differs_is_named_with_both_values(place: str, value: object, engine: Path) -> None:
    change(engine, place, value)
    with pytest.raises(BuildError) as caught:
        check_engine(engine, SETTINGS, CONFIG)
    (fault,) = [line for line in str(caught.value).splitlines() if "expected" in line]
    assert f"{place} is {json.dumps(value)}, expected" in fault


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("build_config.kv_cache_type", "paged"),
        ("build_config.plugin_config.gpt_attention_plugin", "bfloat16"),
        ("build_config.plugin_config.nccl_plugin", "auto"),
    ],
)
def test_a_release_may_write_the_same_in_other_words(place: str, value: object, engine: Path) -> None:
    change(engine, place, value)
    check_engine(engine, SETTINGS, CONFIG)


def test_a_single_rank_has_no_nccl_plugin(engine: Path) -> None:
    config = TrtllmConfig.of(like_72b(2).config.decoder, decoder_precision("fp8"), tp=1, pp=1)
    (engine / "rank1.engine").unlink()
    change(engine, "pretrained_config.mapping.world_size", 1)
    change(engine, "pretrained_config.mapping.tp_size", 1)
    with pytest.raises(BuildError, match='nccl_plugin is "bfloat16", expected null'):
        check_engine(engine, SETTINGS, config)
    change(engine, "build_config.plugin_config.nccl_plugin", None)
    check_engine(engine, SETTINGS, config)


def test_all_faults_are_told_at_once(engine: Path) -> None:
    (engine / "rank0.engine").write_bytes(b"")
    (engine / "rank1.engine").unlink()
    (engine / "rank2.engine").write_bytes(b"plan")
    change(engine, "build_config.max_batch_size", 1)
    with pytest.raises(BuildError) as caught:
        check_engine(engine, SETTINGS, CONFIG)
    for fault in ("rank0.engine is empty", "rank1.engine is missing", "rank2.engine is there", "max_batch_size is 1"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(("text", "fault"), [(None, "is missing"), ("{", "cannot be read"), ("[]", "is null")])
def test_a_config_that_says_nothing_is_a_fault(text: str | None, fault: str, engine: Path) -> None:
    path = engine / "config.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BuildError, match=f"config.json.* {fault}"):
        check_engine(engine, SETTINGS, CONFIG)
