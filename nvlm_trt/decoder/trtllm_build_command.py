"""What trtllm-build is told: the limits and plugins of a recipe's decoder engine, and the command line.

Flags, their values and what the builder makes of them are those of TensorRT-LLM 1.x (tensorrt_llm/commands/build.py,
builder.py, plugin/plugin.py). How many ranks there are is said by the checkpoint, not by a flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nvlm_trt.decoder.precision import KvCacheAlgo, Precision, QuantAlgo
from nvlm_trt.errors import RecipeError, listed
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.recipe import BuildRecipe

PROGRAM: Final = "trtllm-build"

LEAST_MAX_NUM_TOKENS: Final = 8192
"""trtllm-build's own default of max_num_tokens."""

PAGED_CONTEXT_FIELDS: Final = ("kv_cache_reuse", "chunked_context")
"""Fields of `decoder_engine` that stand on paged context attention (see `pages_context`)."""

HOST_COPIES: Final = 3
"""Sizes of a rank's weights that its worker holds in host memory: the weights, TensorRT's copy, the serialised engine.

An estimate: NVIDIA names no figure.
"""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine depends on, beside the checkpoint. How many ranks are built at a time is no part of it.

    Attributes:
        max_batch_size: Requests of one step at most; the prompt table is cut into as many equal parts.
        max_seq_len: Tokens of prompt and answer of a request at most, visual ones included.
        max_num_tokens: Tokens of one step over all requests at most.
        max_multimodal_len: Rows of the prompt tables of all requests of a step; 0 is an engine without one.
        gemm_plugin: "auto" runs matrices in the model's dtype in cuBLAS, "disable" leaves them to TensorRT. For fp8
            there is a plugin as well, for batches of a few requests; it keeps no more of the scales (see Fp8Quantizer).
        paged_context_fmha: Prefill reads the KV cache by blocks: what reuse of blocks and chunks of a prompt stand on.
        fp8_context_fmha: Prefill computes attention in fp8.
        tokens_per_block: Tokens of one block of the KV cache.
        multiple_profiles: Several optimisation profiles, each with kernels for steps of so many tokens.
    """

    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    max_multimodal_len: int
    gemm_plugin: Literal["auto", "disable"]
    paged_context_fmha: bool
    fp8_context_fmha: bool
    tokens_per_block: int
    multiple_profiles: bool


def engine_settings(
    recipe: BuildRecipe, decoder: DecoderConfig, precision: Precision, *, max_seq_len: int, max_table_rows: int
) -> EngineSettings:
    """What a recipe of the gpu target asks of the engine.

    Args:
        recipe: The recipe.
        decoder: Shapes of the decoder.
        precision: Of the decoder, its KV cache included.
        max_seq_len: Tokens of prompt and answer together at most.
        max_table_rows: Visual tokens of one request at most.

    Raises:
        RecipeError: the engine would take more tokens than the model has positions (trtllm-build only warns of it).
    """
    if max_seq_len > decoder.max_position_embeddings:
        raise RecipeError(
            "the engine cannot take more tokens than the model has positions",
            seen=max_seq_len,
            expected=f"at most {decoder.max_position_embeddings}",
        )
    paged = pages_context(precision)
    return EngineSettings(
        max_batch_size=recipe.max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens(recipe, max_seq_len),
        max_multimodal_len=recipe.max_batch_size * max_table_rows,
        gemm_plugin="disable" if _is_fp8(precision) else "auto",
        paged_context_fmha=paged,
        fp8_context_fmha=paged and _cache(precision) == KvCacheAlgo.FP8,
        tokens_per_block=recipe.decoder_engine.tokens_per_block,
        multiple_profiles=recipe.decoder_engine.multiple_profiles,
    )


def max_num_tokens(recipe: BuildRecipe, max_seq_len: int) -> int:
    """Tokens of one decoder step at most: as asked for, else the longest prompt's, at least trtllm-build's default.

    It is clipped as trtllm-build itself does (check_max_num_tokens in tensorrt_llm): to whole
    sequences of a whole batch from above, to one block of the KV cache from below.

    Args:
        recipe: The recipe.
        max_seq_len: Tokens of prompt and answer together at most.
    """
    engine = recipe.decoder_engine
    asked = engine.max_num_tokens or max(_longest_prompt(recipe, max_seq_len), LEAST_MAX_NUM_TOKENS)
    return max(min(asked, max_seq_len * recipe.max_batch_size), engine.tokens_per_block)


def refusals(recipe: BuildRecipe, decoder: DecoderConfig, precision: Precision) -> list[str]:
    """Why TensorRT-LLM could not run what the recipe asks for, one reason each; empty where it can.

    How many ranks the shapes allow says `check_parallelism`, what a GPU model cannot run its compute capability.

    Args:
        recipe: The recipe.
        decoder: Shapes of the decoder.
        precision: Of the decoder, its KV cache included.
    """
    engine = recipe.decoder_engine
    reasons = []
    if engine.speculative_decoding == "lookahead":
        reasons.append(
            "decoder_engine.speculative_decoding lookahead: in TensorRT-LLM it gives wrong answers or none together "
            "with a prompt table, which carries the images (NVIDIA/TensorRT-LLM issues 6009 and 3137); use none"
        )
    if not pages_context(precision):
        needing = [name for name in PAGED_CONTEXT_FIELDS if getattr(engine, name)]
        if needing:
            weights = precision.quantization.quant_algo or precision.dtype.name
            reasons.append(
                f"{' and '.join(f'decoder_engine.{name}' for name in needing)} with an {_cache(precision)} KV cache: "
                f"trtllm-build turns paged context attention off for it beside {weights} weights; set to false, or "
                "decoder_engine.kv_cache_precision to auto"
            )
    max_seq_len = recipe.max_seq_len(decoder.max_position_embeddings)
    longest, tokens = _longest_prompt(recipe, max_seq_len), max_num_tokens(recipe, max_seq_len)
    if tokens < longest and not engine.chunked_context:
        reasons.append(
            f"decoder_engine.max_num_tokens {tokens}: a prompt may have {longest} tokens and is read in one step; "
            "raise it to that, or set decoder_engine.chunked_context to true"
        )
    return reasons


def refuse(recipe: BuildRecipe, decoder: DecoderConfig, precision: Precision) -> None:
    """Stop before anything is built if TensorRT-LLM could not run what the recipe asks for.

    Raises:
        RecipeError: with every reason of `refusals`.
    """
    reasons = refusals(recipe, decoder, precision)
    if reasons:
        raise RecipeError(f"{recipe.name}: TensorRT-LLM cannot run this decoder:{listed(reasons)}")


def pages_context(precision: Precision) -> bool:
    """Whether paged context attention works: not on int8 keys and values, on fp8 ones beside fp8 weights only.

    The builder turns it off in the other cases and only logs a warning (tensorrt_llm/builder.py).

    Args:
        precision: Of the decoder, its KV cache included.
    """
    match _cache(precision):
        case None:
            return True
        case KvCacheAlgo.FP8:
            return _is_fp8(precision)
        case KvCacheAlgo.INT8:
            return False


def workers_that_fit(rank_bytes: int, available_memory: int, ranks: int, gpus: int) -> int:
    """Ranks to build at a time: as many as host memory, ranks and GPUs allow, at least one.

    Args:
        rank_bytes: Bytes of the weights of one rank.
        available_memory: Bytes of host memory that are free.
        ranks: Ranks in all.
        gpus: GPUs of the machine that builds; each worker measures kernels on one.
    """
    return max(1, min(available_memory // (HOST_COPIES * rank_bytes), ranks, gpus))


def build_command(
    settings: EngineSettings,
    checkpoint_dir: Path,
    output_dir: Path,
    *,
    workers: int,
    timing_cache_in: Path | None,
    timing_cache_out: Path,
) -> tuple[str, ...]:
    """The command line, without the program itself.

    Whatever the engine depends on is said, defaults included: they have changed from release to release. Left out is
    max_input_len, which neither the builder nor the runtime looks at where padding is removed and context_fmha is on
    (tensorrt_llm/builder.py, _init_max_seq_len), and what concerns other models: plugins of mixtures of experts, Mamba,
    BERT and LoRA.

    Args:
        settings: Of the engine.
        checkpoint_dir: The TensorRT-LLM checkpoint.
        output_dir: Where the engines go.
        workers: Ranks that are built at a time.
        timing_cache_in: Times of kernels from earlier builds; None for none.
        timing_cache_out: Where rank 0, and no other, leaves the times that it has (tensorrt_llm/builder.py, build).
    """
    # Several profiles have optima of their own, and trtllm-build takes no other beside them.
    optimum = None if settings.multiple_profiles else min(settings.max_batch_size, settings.max_num_tokens)
    flags: dict[str, object] = {
        "checkpoint_dir": checkpoint_dir,
        "output_dir": output_dir,
        "max_batch_size": settings.max_batch_size,
        "max_beam_width": 1,
        "max_seq_len": settings.max_seq_len,
        "max_num_tokens": settings.max_num_tokens,
        "opt_num_tokens": optimum,
        "max_multimodal_len": settings.max_multimodal_len,
        "kv_cache_type": "paged",
        "tokens_per_block": settings.tokens_per_block,
        "logits_dtype": "float32",
        "gemm_plugin": settings.gemm_plugin,
        "gpt_attention_plugin": "auto",
        "nccl_plugin": "auto",
        "remove_input_padding": "enable",
        "context_fmha": "enable",
        "use_paged_context_fmha": _switch(settings.paged_context_fmha),
        "use_fp8_context_fmha": _switch(settings.fp8_context_fmha),
        "use_fused_mlp": "enable",  # of plain and fp8 weights: fuse_gate_mlp passes over all others
        "reduce_fusion": "disable",  # for Llama, Gemma and Medusa alone, and user_buffer rests on it
        "user_buffer": "disable",
        "multiple_profiles": _switch(settings.multiple_profiles),
        "profiling_verbosity": "layer_names_only",
        "workers": workers,
        "log_level": "info",
        "input_timing_cache": timing_cache_in,
        "output_timing_cache": timing_cache_out,
    }
    return tuple(word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value)))


def _switch(on: bool) -> str:
    return "enable" if on else "disable"


def _longest_prompt(recipe: BuildRecipe, max_seq_len: int) -> int:
    return min(recipe.max_input_len, max_seq_len)


def _cache(precision: Precision) -> KvCacheAlgo | None:
    return precision.quantization.kv_cache_quant_algo


def _is_fp8(precision: Precision) -> bool:
    return precision.quantization.quant_algo == QuantAlgo.FP8
