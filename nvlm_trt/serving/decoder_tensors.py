"""Inputs and outputs of `tensorrt_llm`: those of the C++ backend's own configuration.

Source: NVIDIA/TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt, the last version
before the backend was removed. The cpu target serves a part of them, the gpu target declares them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

Tensor: TypeAlias = tuple[str, str, Sequence[int]]
"""Name, Triton's name of the type, dimensions without the batch."""

STOP: Final = "stop"
"""Ends the request of the same id; the cpu target's vision encoder has it too."""

DECODER_FROM_PREPROCESSING: Final[tuple[Tensor, ...]] = (
    ("input_ids", "INT32", (-1,)),
    ("input_lengths", "INT32", (1,)),
    ("request_output_len", "INT32", (1,)),
    ("end_id", "INT32", (1,)),
    ("pad_id", "INT32", (1,)),
    ("runtime_top_k", "INT32", (1,)),
    ("runtime_top_p", "FP32", (1,)),
    ("temperature", "FP32", (1,)),
    ("repetition_penalty", "FP32", (1,)),
    ("min_tokens", "INT32", (1,)),
    ("seed", "UINT64", (1,)),
    ("streaming", "BOOL", (1,)),
    ("return_log_probs", "BOOL", (1,)),
    ("prompt_table_extra_ids", "UINT64", (-1,)),
    ("prompt_vocab_size", "INT32", (1,)),
)
"""Inputs that preprocessing makes."""

DECODER_REQUIRED: Final = ("input_lengths", "request_output_len")
"""As in the C++ backend's configuration; input_ids is refused by the model itself when it is absent."""

DECODER_OTHER: Final[tuple[Tensor, ...]] = (
    ("stop_words_list", "INT32", (2, -1)),
    ("bad_words_list", "INT32", (2, -1)),
    ("embedding_bias", "FP32", (-1,)),
    ("beam_width", "INT32", (1,)),
    ("len_penalty", "FP32", (1,)),
    ("presence_penalty", "FP32", (1,)),
    ("frequency_penalty", "FP32", (1,)),
    ("return_context_logits", "BOOL", (1,)),
    ("return_generation_logits", "BOOL", (1,)),
    (STOP, "BOOL", (1,)),
)
"""Further inputs that the cpu target knows, be it to refuse them."""

DECODER_GPU: Final[tuple[Tensor, ...]] = (
    ("num_return_sequences", "INT32", (1,)),
    ("runtime_top_p_min", "FP32", (1,)),
    ("runtime_top_p_decay", "FP32", (1,)),
    ("runtime_top_p_reset_ids", "INT32", (1,)),
    ("early_stopping", "BOOL", (1,)),
    ("beam_search_diversity_rate", "FP32", (1,)),
    ("return_perf_metrics", "BOOL", (1,)),
    ("return_num_input_tokens", "BOOL", (1,)),
    ("return_num_output_tokens", "BOOL", (1,)),
    ("exclude_input_in_output", "BOOL", (1,)),
    ("draft_input_ids", "INT32", (-1,)),
    ("draft_logits", "FP32", (-1, -1)),
    ("draft_acceptance_threshold", "FP32", (1,)),
    ("encoder_input_features", "BF16", (-1, -1)),
    ("encoder_output_lengths", "INT32", (1,)),
    ("decoder_input_ids", "INT32", (-1,)),
    ("decoder_input_lengths", "INT32", (1,)),
    ("cross_attention_mask", "BOOL", (-1, -1)),
    ("skip_cross_attn_blocks", "BOOL", (1,)),
    ("mrope_rotary_cos_sin", "FP32", (-1,)),
    ("mrope_position_deltas", "INT64", (1,)),
    ("lora_task_id", "UINT64", (1,)),
    ("lora_weights", "FP16", (-1, -1)),
    ("lora_config", "INT32", (-1, 3)),
    ("context_phase_params", "UINT8", (-1,)),
    ("retention_token_range_starts", "INT32", (-1,)),
    ("retention_token_range_ends", "INT32", (-1,)),
    ("retention_token_range_priorities", "INT32", (-1,)),
    ("retention_token_range_durations_ms", "INT32", (-1,)),
    ("retention_decode_priority", "INT32", (1,)),
    ("retention_decode_duration_ms", "INT32", (1,)),
    ("guided_decoding_guide_type", "BYTES", (1,)),
    ("guided_decoding_guide", "BYTES", (1,)),
    ("lookahead_window_size", "INT32", (1,)),
    ("lookahead_ngram_size", "INT32", (1,)),
    ("lookahead_verification_set_size", "INT32", (1,)),
)
"""Inputs that only the C++ backend takes. What this engine was not built for (LoRA, drafts, an encoder), the backend
refuses by itself."""

SWITCHES: Final = frozenset({STOP, "streaming"})
"""Inputs whose dimension the cpu target keeps; the C++ backend's configuration reshapes every scalar but `RAGGED`'s."""

RAGGED: Final = frozenset(
    {
        "skip_cross_attn_blocks",
        "retention_decode_priority",
        "retention_decode_duration_ms",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
        "lookahead_window_size",
        "lookahead_ngram_size",
        "lookahead_verification_set_size",
    }
)
"""Inputs of one value that the C++ backend's configuration does not reshape but declares ragged."""

MROPE: Final = frozenset({"mrope_rotary_cos_sin", "mrope_position_deltas"})
"""Inputs that it neither reshapes nor declares ragged."""

OUTPUTS: Final[tuple[Tensor, ...]] = (
    ("output_ids", "INT32", (-1, -1)),
    ("sequence_length", "INT32", (-1,)),
)
"""Outputs that both targets give."""

LOG_PROBS: Final[tuple[Tensor, ...]] = (
    ("cum_log_probs", "FP32", (-1,)),
    ("output_log_probs", "FP32", (-1, -1)),
)
"""Outputs that both targets give where return_log_probs asks for them: of a stream, those of the tokens that come."""

CACHED_TOKENS: Final[Tensor] = ("num_cached_tokens", "INT32", (1,))
"""Output of the cpu target alone, in every response where it is asked for: tokens of the prompt that the KV cache held
already. The C++ backend counts blocks, and where `return_perf_metrics` asks for them only."""

OUTPUTS_GPU: Final[tuple[Tensor, ...]] = (
    ("context_logits", "FP32", (-1, -1)),
    ("generation_logits", "FP32", (-1, -1, -1)),
    ("batch_index", "INT32", (1,)),
    ("sequence_index", "INT32", (1,)),
    ("context_phase_params", "UINT8", (-1,)),
    ("kv_cache_alloc_new_blocks", "INT32", (1,)),
    ("kv_cache_reused_blocks", "INT32", (1,)),
    ("kv_cache_alloc_total_blocks", "INT32", (1,)),
    ("arrival_time_ns", "INT64", (1,)),
    ("first_scheduled_time_ns", "INT64", (1,)),
    ("first_token_time_ns", "INT64", (1,)),
    ("last_token_time_ns", "INT64", (1,)),
    ("acceptance_rate", "FP32", (1,)),
    ("total_accepted_draft_tokens", "INT32", (1,)),
    ("total_draft_tokens", "INT32", (1,)),
    ("num_input_tokens", "INT32", (1,)),
    ("num_output_tokens", "INT32", (1,)),
)
"""Outputs of the C++ backend alone. The type of the logits is the engine's ``logits_dtype``, float32 here."""
