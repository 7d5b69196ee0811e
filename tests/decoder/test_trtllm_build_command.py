"""The command line of trtllm-build follows from the recipe, for every shipped recipe word for word.

After a change that is meant, renew the files, and read the difference before it is committed:

    NVLM_TRT_RENEW_GOLDEN=1 pytest tests/decoder/test_trtllm_build_command.py
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from nvlm_trt.decoder.precision import Precision, decoder_precision
from nvlm_trt.decoder.trtllm_build_command import (
    EngineSettings,
    build_command,
    engine_settings,
    max_num_tokens,
    refusals,
    refuse,
    workers_that_fit,
)
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.recipe import BuildRecipe, load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "trtllm_build"
RECIPES = sorted(path for path in (ROOT / "build" / "recipes").glob("*.yaml") if "target: gpu" in path.read_text())
GIB = 1 << 30

# Every flag of trtllm-build by the values that it takes: NVIDIA/TensorRT-LLM 1.2, tensorrt_llm/commands/build.py
# (parse_arguments) and tensorrt_llm/plugin/plugin.py (cli_plugin_args; choices are the Literals of PluginConfig).
FLAGS = """
text: checkpoint_dir output_dir model_config build_config model_cls_file model_cls_name
text: input_timing_cache output_timing_cache visualize_network lora_dir lora_target_modules
number: max_batch_size max_input_len max_seq_len max_decoder_seq_len max_beam_width max_num_tokens opt_num_tokens
number: max_encoder_input_len max_prompt_embedding_table_size max_multimodal_len max_lora_rank max_draft_len
number: workers tokens_per_block
nothing: strip_plan weight_sparsity weight_streaming fast_build enable_debug_output dry_run monitor_memory
nothing: gather_context_logits gather_generation_logits gather_all_token_logits
continuous|paged|disabled: kv_cache_type
layer_names_only|detailed|none: profiling_verbosity
internal_error|error|warning|info|verbose|debug|trace: log_level
float16|float32: logits_dtype
hf|nemo: lora_ckpt_source
draft_tokens_external|lookahead_decoding|medusa|explicit_draft_tokens|eagle: speculative_decoding_mode
auto|float16|float32|bfloat16|int32|fp8|nvfp4|disable: gemm_plugin
auto|float16|float32|bfloat16|int32|disable: bert_attention_plugin gpt_attention_plugin fp8_rowwise_gemm_plugin
auto|float16|float32|bfloat16|int32|disable: lora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin
float16|bfloat16|disable: gemm_allreduce_plugin
fp8|disable: gemm_swiglu_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin
enable|disable: context_fmha bert_context_fmha_fp32_acc use_paged_context_fmha use_fp8_context_fmha use_fused_mlp
enable|disable: remove_input_padding multiple_profiles paged_state streamingllm reduce_fusion norm_quant_fusion
enable|disable: fuse_fp4_quant user_buffer pp_reduce_scatter dora_plugin
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags as trtllm-build would read them; ValueError for one, or a value, that it does not know."""
    parser = _Parser(allow_abbrev=False)
    for line in FLAGS.strip().splitlines():
        values, names = line.split(": ")
        for name in names.split():
            match values:
                case "text":
                    parser.add_argument(f"--{name}")
                case "number":
                    parser.add_argument(f"--{name}", type=int)
                case "nothing":
                    parser.add_argument(f"--{name}", action="store_true")
                case _:
                    parser.add_argument(f"--{name}", choices=values.split("|"))
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def release() -> Checkpoint:
    """The shapes of NVLM-D-72B."""
    return planned_shapes(None)


def recipe_of(engine: dict[str, object] | None = None, **fields: object) -> BuildRecipe:
    return parse_recipe({"name": "r", "target": "gpu", "decoder_engine": engine or {}, **fields}, "r")


def precision_of(recipe: BuildRecipe) -> Precision:
    engine = recipe.decoder_engine
    return decoder_precision(
        recipe.decoder_precision, kv_cache=engine.kv_cache_precision, group_size=engine.awq_group_size
    )


def settings_of(recipe: BuildRecipe, release: Checkpoint) -> EngineSettings:
    sources = Sources(recipe, release, None)
    return engine_settings(
        recipe,
        release.config.decoder,
        precision_of(recipe),
        max_seq_len=sources.max_seq_len,
        max_table_rows=sources.max_table_rows,
    )


def command_of(settings: EngineSettings) -> tuple[str, ...]:
    return build_command(
        settings,
        Path("checkpoint"),
        Path("engine"),
        workers=1,
        timing_cache_in=Path("timing.cache"),
        timing_cache_out=Path("timing.cache"),
    )


def flags(words: tuple[str, ...]) -> dict[str, str]:
    assert all(name.startswith("--") for name in words[::2])
    assert len(set(words[::2])) == len(words) // 2
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def reasons(recipe: BuildRecipe, release: Checkpoint) -> list[str]:
    return refusals(recipe, release.config.decoder, precision_of(recipe))


def renewing() -> bool:
    return os.environ.get("NVLM_TRT_RENEW_GOLDEN") == "1"


def test_every_gpu_recipe_has_a_golden_command_line() -> None:
    assert len(RECIPES) == 6
    if not renewing():
        assert {path.stem for path in GOLDEN.iterdir()} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_line_of_a_recipe(path: Path, release: Checkpoint) -> None:
    pairs = flags(command_of(settings_of(load_recipe(path), release)))
    text = "".join(f"--{name} {shlex.quote(value)}\n" for name, value in pairs.items())
    golden = GOLDEN / f"{path.stem}.txt"
    if renewing():
        golden.write_text(text, encoding="utf-8")
        pytest.skip(f"{golden.name} is renewed")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_one_that_tensorrt_llm_can_run(path: Path, release: Checkpoint) -> None:
    assert reasons(load_recipe(path), release) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trtllm_build_knows_every_flag_and_every_value(path: Path, release: Checkpoint) -> None:
    parsed = parse(command_of(settings_of(load_recipe(path), release)))
    assert parsed.kv_cache_type == "paged"


@pytest.mark.parametrize("words", [("--tp_size", "4"), ("--gemm_plugin", "enable"), ("--kv_cache_type", "auto")])
def test_what_trtllm_build_does_not_know_would_be_noticed(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=words[0]):
        parse(words)


def test_the_prompt_table_has_the_visual_tokens_of_a_whole_batch(release: Checkpoint) -> None:
    # 2 images of 6 tiles and a thumbnail, 256 visual tokens each; TensorRT-LLM gives a request 1/8 of the table.
    settings = settings_of(recipe_of(max_batch_size=8, max_tiles=6, max_images=2, max_input_len=8192), release)
    assert settings.max_multimodal_len == 8 * 2 * 7 * 256


@pytest.mark.parametrize(
    ("precision", "plugin"),
    [
        ("bf16", "auto"),
        ("fp16", "auto"),
        ("int8_wo", "auto"),
        ("int4_wo", "auto"),
        ("int4_awq", "auto"),
        ("int8_sq", "auto"),
        ("fp8", "disable"),
    ],
)
def test_only_fp8_matrices_are_left_to_tensorrt(precision: str, plugin: str, release: Checkpoint) -> None:
    settings = settings_of(recipe_of(decoder_precision=precision), release)
    assert flags(command_of(settings))["gemm_plugin"] == plugin


@pytest.mark.parametrize(
    ("precision", "cache", "paged", "fp8"),
    [
        ("bf16", "auto", "enable", "disable"),
        ("bf16", "fp8", "disable", "disable"),
        ("bf16", "int8", "disable", "disable"),
        ("int4_awq", "fp8", "disable", "disable"),
        ("fp8", "auto", "enable", "enable"),
        ("fp8", "model", "enable", "disable"),
        ("fp8", "int8", "disable", "disable"),
    ],
)
def test_attention_of_the_prefill_follows_weights_and_kv_cache(
    precision: str, cache: str, paged: str, fp8: str, release: Checkpoint
) -> None:
    recipe = recipe_of({"kv_cache_precision": cache}, decoder_precision=precision)
    said = flags(command_of(settings_of(recipe, release)))
    assert (said["use_paged_context_fmha"], said["use_fp8_context_fmha"]) == (paged, fp8)


def test_fields_of_the_recipe_reach_the_command_line(release: Checkpoint) -> None:
    recipe = recipe_of(
        {"max_num_tokens": 5000, "tokens_per_block": 64, "multiple_profiles": True},
        max_batch_size=3,
        max_input_len=3000,
        max_output_len=500,
    )
    said = flags(command_of(settings_of(recipe, release)))
    assert said["max_batch_size"] == "3"
    assert said["max_seq_len"] == "3500"
    assert said["max_num_tokens"] == "5000"
    assert said["tokens_per_block"] == "64"
    assert said["multiple_profiles"] == "enable"


def test_kernels_are_chosen_for_steps_that_decode_a_whole_batch(release: Checkpoint) -> None:
    said = flags(command_of(settings_of(recipe_of(max_batch_size=24), release)))
    assert said["opt_num_tokens"] == "24"


def test_several_profiles_have_optima_of_their_own(release: Checkpoint) -> None:
    # trtllm-build ends with an error where both are given.
    said = flags(command_of(settings_of(recipe_of({"multiple_profiles": True}), release)))
    assert "opt_num_tokens" not in said


@pytest.mark.parametrize(
    ("engine", "fields", "tokens"),
    [
        ({}, {"max_input_len": 2048}, 8192),
        ({}, {"max_input_len": 16384}, 16384),
        ({"max_num_tokens": 4096}, {"max_input_len": 16384}, 4096),
        ({"max_num_tokens": 4096}, {"max_input_len": 1000, "max_output_len": 24, "max_batch_size": 2}, 2048),
        ({"max_num_tokens": 5, "tokens_per_block": 64}, {}, 64),
    ],
)
def test_tokens_of_a_step(engine: dict[str, object], fields: dict[str, object], tokens: int) -> None:
    recipe = recipe_of(engine, **fields)
    assert max_num_tokens(recipe, recipe.max_seq_len(32_768)) == tokens


def test_a_cache_of_kernel_times_is_only_named_where_there_is_one(release: Checkpoint) -> None:
    settings = settings_of(recipe_of(), release)
    words = build_command(
        settings, Path("c"), Path("e"), workers=2, timing_cache_in=None, timing_cache_out=Path("new.cache")
    )
    assert "input_timing_cache" not in flags(words)
    assert flags(words)["output_timing_cache"] == "new.cache"
    assert flags(words)["workers"] == "2"
    assert flags(command_of(settings))["input_timing_cache"] == "timing.cache"


def test_more_tokens_than_the_model_has_positions_are_refused(release: Checkpoint) -> None:
    recipe, decoder = recipe_of(), replace(release.config.decoder, max_position_embeddings=4096)
    with pytest.raises(RecipeError, match="at most 4096"):
        engine_settings(recipe, decoder, precision_of(recipe), max_seq_len=4097, max_table_rows=256)


def test_lookahead_is_refused_because_of_the_prompt_table(release: Checkpoint) -> None:
    (reason,) = reasons(recipe_of({"speculative_decoding": "lookahead"}), release)
    assert "lookahead" in reason
    assert "6009" in reason


@pytest.mark.parametrize(("precision", "cache"), [("bf16", "int8"), ("fp8", "int8"), ("int4_awq", "fp8")])
def test_reuse_and_chunks_are_refused_where_the_kv_cache_does_not_allow_them(
    precision: str, cache: str, release: Checkpoint
) -> None:
    engine: dict[str, object] = {"kv_cache_precision": cache}
    (reason,) = reasons(recipe_of(engine, decoder_precision=precision), release)
    assert "kv_cache_reuse and decoder_engine.chunked_context" in reason
    (reason,) = reasons(recipe_of({**engine, "kv_cache_reuse": False}, decoder_precision=precision), release)
    assert "kv_cache_reuse" not in reason
    without = {**engine, "kv_cache_reuse": False, "chunked_context": False}
    assert reasons(recipe_of(without, decoder_precision=precision), release) == []


def test_without_chunks_a_step_must_hold_the_longest_prompt(release: Checkpoint) -> None:
    engine: dict[str, object] = {"max_num_tokens": 8191}
    assert reasons(recipe_of(engine), release) == []
    (reason,) = reasons(recipe_of({**engine, "chunked_context": False}), release)
    assert "8192" in reason
    assert reasons(recipe_of({"max_num_tokens": 8192, "chunked_context": False}), release) == []


def test_all_reasons_are_told_at_once(release: Checkpoint) -> None:
    recipe = recipe_of({"speculative_decoding": "lookahead", "kv_cache_precision": "int8"})
    with pytest.raises(RecipeError) as caught:
        refuse(recipe, release.config.decoder, precision_of(recipe))
    for reason in reasons(recipe, release):
        assert reason in str(caught.value)
    assert len(reasons(recipe, release)) == 2


@pytest.mark.parametrize(
    ("rank_gib", "memory_gib", "ranks", "gpus", "workers"),
    [(20, 59, 8, 8, 1), (20, 60, 8, 8, 1), (20, 130, 8, 8, 2), (20, 2000, 8, 4, 4), (20, 2000, 2, 8, 2)],
)
def test_as_many_ranks_at_a_time_as_memory_and_gpus_allow(
    rank_gib: int, memory_gib: int, ranks: int, gpus: int, workers: int
) -> None:
    assert workers_that_fit(rank_gib * GIB, memory_gib * GIB, ranks, gpus) == workers
