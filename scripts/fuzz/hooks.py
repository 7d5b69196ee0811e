"""What a schema cannot tell schemathesis: the model's name, and that long answers prove nothing."""

from __future__ import annotations

from typing import Any

import schemathesis

MOST_TOKENS = 16
"""Of an answer: hundreds would take the time of hundreds of requests."""


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Let requests that are good otherwise reach the model."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("model"), str):
        body["model"] = "nvlm"
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        value = body.get(name)
        if isinstance(value, int) and MOST_TOKENS < value < 1 << 31:
            body[name] = MOST_TOKENS
    return body
