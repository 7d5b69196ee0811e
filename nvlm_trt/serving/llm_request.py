"""From the C++ backend's tensors to a decode request; what this decoder cannot do is refused, never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.request import DecodeRequest, SamplingParams
from nvlm_trt.errors import RequestError
from nvlm_trt.serving.requests import Tensors, one_value, parse_flag

NEUTRAL: Final[dict[str, float]] = {
    "beam_width": 1,
    "len_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "return_context_logits": 0,
    "return_generation_logits": 0,
}
"""Inputs of the C++ backend that this decoder only takes at the value which changes nothing."""

ABSENT: Final = {
    "stop_words_list": "send stop_words to the model nvlm",
    "bad_words_list": None,
    "embedding_bias": None,
}
"""Inputs that this decoder does not take at all, with a way out where there is one."""


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """A decode request, and whether its tokens are wanted as they come."""

    decode: DecodeRequest
    streaming: bool


def parse_llm_request(tensors: Tensors, name: str, vocab_size: int) -> LlmRequest:
    """Check the tensors of one request of batch 1.

    Args:
        tensors: By the C++ backend's names, with the batch dimension.
        name: The engine's id for the request.
        vocab_size: Rows of the decoder's embedding.

    Raises:
        RequestError: a tensor is missing, of another shape, or asks for what this decoder cannot do.
    """
    _refuse(tensors)
    ids = tensors.get("input_ids")
    if ids is None:
        raise RequestError("input_ids is missing")
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise RequestError("one request at a time", seen=f"input_ids {list(ids.shape)}", expected="[1, n]")
    length = one_value(tensors, "input_lengths", int, ids.shape[1])
    if not 1 <= length <= ids.shape[1]:
        raise RequestError("input_lengths is out of range", seen=length, expected=f"1 to {ids.shape[1]}")
    prompt = np.array(ids[0, :length], dtype=np.int32)
    table = _table(tensors) if int(prompt.max()) >= vocab_size else None
    decode = DecodeRequest(name, prompt, table, _sampling(tensors))
    return LlmRequest(decode, parse_flag(tensors, "streaming"))


def _sampling(tensors: Tensors) -> SamplingParams:
    if "request_output_len" not in tensors:
        raise RequestError("request_output_len is missing")
    top_k, top_p = one_value(tensors, "runtime_top_k", int, 0), one_value(tensors, "runtime_top_p", float, 0.0)
    greedy = not top_k and top_p <= 0  # TensorRT-LLM's own default
    end = one_value(tensors, "end_id", int, -1)
    return SamplingParams(
        max_tokens=one_value(tensors, "request_output_len", int, 0),
        temperature=0.0 if greedy else one_value(tensors, "temperature", float, 1.0),
        top_k=top_k,
        top_p=max(top_p, 0.0),
        repetition_penalty=one_value(tensors, "repetition_penalty", float, 1.0),
        seed=one_value(tensors, "seed", int, 0),  # the C++ backend's own default
        min_tokens=one_value(tensors, "min_tokens", int, 0),
        stop_ids=(end,) if end >= 0 else (),
        log_probs=parse_flag(tensors, "return_log_probs"),
    )


def _table(tensors: Tensors) -> npt.NDArray[np.float32] | None:
    table = tensors.get("prompt_embedding_table")
    if table is None:
        return None
    if table.ndim != 3 or table.shape[0] != 1:
        raise RequestError(
            "prompt_embedding_table has another shape", seen=list(table.shape), expected="[1, n, hidden]"
        )
    return np.array(table[0], dtype=np.float32)


def _refuse(tensors: Tensors) -> None:
    for name, neutral in NEUTRAL.items():
        seen = one_value(tensors, name, float, neutral)
        if seen != neutral:
            raise RequestError(f"{name} is not served by this decoder", seen=seen, expected=neutral)
    for name, fix in ABSENT.items():
        if name in tensors:
            raise RequestError(f"{name} is not served by this decoder", fix=fix or "leave it out")
