"""When a request reached what, on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stages:
    """Written by the engine's worker; whoever has seen the request's last event may read it.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reused_tokens: Those among them that the cache held already.
        queued: When it was queued, `time.monotonic()`.
        began: When its first step began; None before.
        first: When its first token was there; None before.
    """

    prompt_tokens: int
    reused_tokens: int = 0
    queued: float = field(default_factory=time.monotonic)
    began: float | None = None
    first: float | None = None
