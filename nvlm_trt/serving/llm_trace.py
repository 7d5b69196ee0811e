"""The spans of one decoding."""

from __future__ import annotations

from nvlm_trt.decoder.request import FinishReason
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.tracing import Facts, Span


def trace_decoding(span: Span, stages: Stages, tokens: int, reason: FinishReason, ended: float) -> None:
    """Make the spans `queue`, `prefill` and `decode` of a request that has ended, as far as it came.

    Args:
        span: Of the request.
        stages: When it reached what.
        tokens: Tokens of its answer.
        reason: Why it ended, which the last span says. "cancelled" is no error here: a stop text ends a decoding so.
        ended: When it ended, by `time.monotonic`.
    """
    read: Facts = {"nvlm.prompt_tokens": stages.prompt_tokens, "nvlm.cached_tokens": stages.reused_tokens}
    marks: list[tuple[str, float | None, Facts]] = [
        ("queue", stages.queued, {}),
        ("prefill", stages.began, read),
        ("decode", stages.first, {"nvlm.answer_tokens": tokens}),
    ]
    reached = [(name, at, facts) for name, at, facts in marks if at is not None]
    ends = [at for _, at, _ in reached[1:]]
    for (name, at, facts), end in zip(reached, [*ends, None], strict=True):
        stage = span.child(name, began=at)
        stage.note(facts if end is not None else {**facts, "nvlm.finish_reason": reason})
        stage.end("INTERNAL" if end is None and reason == "error" else None, at=end or ended)
