"""What trtllm-build leaves: one `rank{r}.engine` a rank and a config.json, and whether it is what was asked for.

The builder changes settings that it doesn't like and only logs a warning, so config.json is compared with the order
(layout of the file: tensorrt_llm/builder.py, EngineConfig.to_dict).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nvlm_trt.decoder.trtllm_build_command import EngineSettings
from nvlm_trt.decoder.trtllm_config import CONFIG_NAME, GPUS_PER_NODE, TrtllmConfig
from nvlm_trt.errors import BuildError, listed


def engine_file(rank: int) -> str:
    """Name of the engine of one rank."""
    return f"rank{rank}.engine"


def check_engine(directory: Path, settings: EngineSettings, config: TrtllmConfig) -> None:
    """Check that the engines of all ranks are there, and that config.json says what was asked for.

    Args:
        directory: What trtllm-build has written.
        settings: What it was told.
        config: config.json of the checkpoint that it was given.

    Raises:
        BuildError: with every fault.
    """
    faults = [*_file_faults(directory, config.world_size), *_config_faults(directory / CONFIG_NAME, settings, config)]
    if faults:
        raise BuildError(
            f"trtllm-build has not built what it was told to:{listed(faults)}",
            fix="see the warnings in its log",
        )


def _file_faults(directory: Path, ranks: int) -> Iterator[str]:
    for rank in range(ranks):
        path = directory / engine_file(rank)
        if not path.is_file():
            yield f"{path.name} is missing"
        elif not path.stat().st_size:
            yield f"{path.name} is empty"
    known = {engine_file(rank) for rank in range(ranks)}
    for path in sorted(directory.glob("rank*.engine")):
        if path.name not in known:
            yield f"{path.name} is there, but there are {ranks} ranks"


def _config_faults(path: Path, settings: EngineSettings, config: TrtllmConfig) -> Iterator[str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield f"{path.name} is missing"
        return
    except (OSError, ValueError) as error:
        yield f"{path.name} cannot be read ({error})"
        return
    for place, allowed in _expected(settings, config).items():
        seen = _at(raw, place)
        if _spelled(seen) not in map(_spelled, allowed):
            yield f"{path.name}: {place} is {json.dumps(seen)}, expected {' or '.join(map(json.dumps, allowed))}"


def _expected(settings: EngineSettings, config: TrtllmConfig) -> Mapping[str, Sequence[object]]:
    """The values that each place may have.

    A plugin's type is written as it was given or as what "auto" stands for. The builder itself sets that of the NCCL
    plugin, and takes it away where there is one rank (tensorrt_llm/builder.py, build).
    """
    auto = ("auto", config.dtype.name)
    plugins = {
        "gpt_attention_plugin": auto,
        "gemm_plugin": auto if settings.gemm_plugin == "auto" else (None,),
        "nccl_plugin": auto if config.world_size > 1 else (None,),
    }
    return {
        **{place: (value,) for place, value in _exactly(settings, config).items()},
        # absent is TensorRT-LLM's own default
        "pretrained_config.mapping.gpus_per_node": (config.gpus_per_node,)
        if config.gpus_per_node != GPUS_PER_NODE
        else (GPUS_PER_NODE, None),
        **{f"build_config.plugin_config.{name}": values for name, values in plugins.items()},
    }


def _exactly(settings: EngineSettings, config: TrtllmConfig) -> Mapping[str, object]:
    decoder = config.decoder
    return {
        "pretrained_config.architecture": "Qwen2ForCausalLM",
        "pretrained_config.dtype": config.dtype.name,
        "pretrained_config.logits_dtype": "float32",
        "pretrained_config.vocab_size": decoder.vocab_size,
        "pretrained_config.hidden_size": decoder.hidden_size,
        "pretrained_config.intermediate_size": decoder.intermediate_size,
        "pretrained_config.num_hidden_layers": decoder.num_layers,
        "pretrained_config.num_attention_heads": decoder.num_heads,
        "pretrained_config.num_key_value_heads": decoder.num_kv_heads,
        "pretrained_config.mapping.world_size": config.world_size,
        "pretrained_config.mapping.tp_size": config.tp,
        "pretrained_config.mapping.pp_size": config.pp,
        "pretrained_config.quantization.quant_algo": config.quantization.quant_algo,
        "pretrained_config.quantization.kv_cache_quant_algo": config.quantization.kv_cache_quant_algo,
        "build_config.max_batch_size": settings.max_batch_size,
        "build_config.max_seq_len": settings.max_seq_len,
        "build_config.max_num_tokens": settings.max_num_tokens,
        "build_config.max_beam_width": 1,
        "build_config.max_prompt_embedding_table_size": settings.max_multimodal_len,
        "build_config.kv_cache_type": "paged",
        "build_config.plugin_config.remove_input_padding": True,
        "build_config.plugin_config.context_fmha": True,
        "build_config.plugin_config.use_paged_context_fmha": settings.paged_context_fmha,
        "build_config.plugin_config.use_fp8_context_fmha": settings.fp8_context_fmha,
        "build_config.plugin_config.multiple_profiles": settings.multiple_profiles,
        "build_config.plugin_config.tokens_per_block": settings.tokens_per_block,
    }


def _spelled(value: object) -> object:
    """Enums are written by name, in capitals, or by value, in small letters: that depends on the release."""
    return value.lower() if isinstance(value, str) else value


def _at(raw: object, place: str) -> object:
    """The value at a dotted place; None where there is none."""
    for key in place.split("."):
        if not isinstance(raw, dict):
            return None
        raw = raw.get(key)
    return raw
