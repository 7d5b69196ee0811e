"""Errors on streams of gRPC that carry their code in their text.

tritonserver tells the code of a model's error only to a stream that asks for it by the header ``triton_grpc_error``,
and that can kill it: it closes the stream at the error, and goes on to use what belonged to the stream (SIGSEGV, with
2.51 about once in a thousand such errors beside other streams; src/grpc/stream_infer_handler.cc of
triton-inference-server/server has a guard against it since). So who wants the code asks the model for it.
"""

from __future__ import annotations

import re
from typing import Final

WANTED: Final = "error_codes"
"""Parameter of a request, true where the text of an error is to begin with its code."""

_CODED: Final = re.compile(r"(?P<step>in ensemble '\w+', )?\[(?P<code>[A-Z_]+)\] (?P<message>.*)", re.DOTALL)
"""Behind what Triton puts in front of the message of an ensemble's step."""


def with_code(code: str, message: str) -> str:
    """The text of an error, with its code."""
    return f"[{code}] {message}"


def code_and_message(text: str) -> tuple[str | None, str]:
    """The code of an error and its message; None where it carries none, as what tritonserver itself says."""
    coded = _CODED.fullmatch(text)
    return (coded["code"], (coded["step"] or "") + coded["message"]) if coded else (None, text)
