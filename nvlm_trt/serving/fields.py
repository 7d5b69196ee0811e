"""The fields of a request and of an answer: names, types and shapes, in one place for configs, models and clients."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nvlm_trt.error_codes import WANTED
from nvlm_trt.errors import RequestError


@dataclass(frozen=True, slots=True)
class Field:
    """A tensor of the `nvlm` model.

    Attributes:
        name: Its name.
        dtype: Triton's name of its type ("BYTES" carries text or files).
        many: Whether it is a list of any length; otherwise it holds one value.
    """

    name: str
    dtype: str
    many: bool = False


REQUEST_FIELDS: Final = (
    Field("text_input", "BYTES"),
    Field("messages", "BYTES"),
    Field("image_bytes", "BYTES", many=True),
    Field("max_tokens", "INT32"),
    Field("min_tokens", "INT32"),
    Field("temperature", "FP32"),
    Field("top_k", "INT32"),
    Field("top_p", "FP32"),
    Field("repetition_penalty", "FP32"),
    Field("seed", "UINT64"),
    Field("max_tiles", "INT32"),
    Field("system_message", "BYTES"),
    Field("exif_orientation", "BOOL"),
    Field("stream", "BOOL"),
)
"""What `ensemble` and `preprocessing` take; text_input or messages is required, the rest is optional."""

STOP_WORDS: Final = Field("stop_words", "BYTES", many=True)
"""Only `nvlm` takes it: matching text needs the whole answer, which no step of an ensemble sees."""

RETURN_LOG_PROBS: Final = Field("return_log_probs", "BOOL")
"""Only `nvlm` takes it: an ensemble's text does not tell its tokens."""

NVLM_FIELDS: Final = (*REQUEST_FIELDS, STOP_WORDS, RETURN_LOG_PROBS)

MAX_FP32: Final = (2 - 2**-23) * 2.0**127
"""Largest number of type FP32. Python compares it with whole numbers that no float holds."""

ANSWER_FIELDS: Final = (
    Field("text_output", "BYTES"),
    Field("finish_reason", "BYTES"),
    Field("num_input_tokens", "INT32"),
    Field("num_output_tokens", "INT32"),
    Field("output_ids", "INT32", many=True),
    Field("output_log_probs", "FP32", many=True),
)
"""What `nvlm` answers; the last two are there where return_log_probs asks for them: of a stream, those that are new."""

TRACEPARENT: Final = "traceparent"
REQUEST_ID: Final = "request_id"
"""Request parameters of ours: the span that asks, as W3C Trace Context writes it, and the id that logs show."""

CANCEL: Final = "cancel_request"
CANCEL_ID: Final = "cancel_id"
"""Request parameters of ours. The first is true in a request to `nvlm` that ends those of its id and asks nothing
itself; the second is the id by which a request can be ended in place of its own, which the answer would repeat. It is
the gateway's to choose, which ends by it what nobody waits for any more: a client's own is an unknown field there."""

LONGEST_NAME: Final = 64
"""Characters of an unknown name that are looked at: a client chooses it, and may make it as long as a whole body."""

PROTOCOL_PARAMETERS: Final = frozenset(
    {"id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
    | {TRACEPARENT, REQUEST_ID, WANTED}
)
"""Request parameters that belong to the protocol; so do those that begin with ``triton_``."""


def refuse_unknown(given: Iterable[str], fields: Iterable[Field]) -> None:
    """Refuse fields that the model does not have.

    Args:
        given: Names of the request's fields; Triton hands unknown ones to the model as request parameters.
        fields: The fields that the model has.

    Raises:
        RequestError: naming the unknown field and the nearest known one.
    """
    names = [field.name for field in fields]
    for name in given:
        if name in names or name in PROTOCOL_PARAMETERS or name.startswith("triton_"):
            continue
        seen = name[:LONGEST_NAME]
        near = difflib.get_close_matches(seen, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(names)}"
        raise RequestError("unknown field", seen=seen, fix=hint)
