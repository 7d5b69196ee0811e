"""What is shown of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvlm_trt.top.window import Window


@dataclass(frozen=True, slots=True)
class Figures:
    """A server in the last seconds; None is a figure that it does not show, or that nothing happened for.

    Attributes:
        engine: What is served.
        ready: Whether it answers.
        window: Seconds that rates and quantiles are of.
        requests: Requests a second, by status.
        working: Requests that the server works on.
        waiting: Requests that wait for it.
        expected_wait: Seconds that a newcomer would wait.
        queue_p99: Seconds that requests waited.
        first_token: Seconds to the first text of streams: median, 99th percentile.
        between_tokens: Seconds between texts of streams: likewise.
        prompt_tokens: Tokens of prompts a second.
        answer_tokens: Tokens of answers a second.
        tiles: Tiles a second that were encoded.
        batch: Tokens of answers in a step of the decoder.
        busy: Share of the time that the decoder computes.
        kv_used: Share of the KV cache that requests hold.
        kv_blocks: Blocks of the KV cache.
        kv_reused: Share of the prompts' tokens that the KV cache held.
        vision_used: Share of the vision cache's bound that is used.
        vision_hits: Share of tiles that the vision cache held.
        refused: Refusals a second, by reason; broken streams among them.
        cancelled: Requests a second that clients gave up.
        restarts: Replacements of the server since it began, by reason.
        memory: Bytes by process.
    """

    engine: str
    ready: bool | None
    window: float
    requests: Mapping[str, float]
    working: float | None
    waiting: float | None
    expected_wait: float | None
    queue_p99: float | None
    first_token: tuple[float | None, float | None]
    between_tokens: tuple[float | None, float | None]
    prompt_tokens: float | None
    answer_tokens: float | None
    tiles: float | None
    batch: float | None
    busy: float | None
    kv_used: float | None
    kv_blocks: float | None
    kv_reused: float | None
    vision_used: float | None
    vision_hits: float | None
    refused: Mapping[str, float]
    cancelled: float | None
    restarts: Mapping[str, float]
    memory: Mapping[str, float]

    @classmethod
    def of(cls, window: Window) -> Figures:
        """The figures of the last seconds."""
        ready = window.now("nvlm_server_ready")
        blocks, free = window.now("nvlm_kv_blocks"), window.now("nvlm_kv_free_blocks")
        return cls(
            engine=next(iter(window.now_by("nvlm_build_info", "engine")), ""),
            ready=None if ready is None else bool(ready),
            window=window.seconds,
            requests=window.rate_by("nvlm_requests_total", "status"),
            working=window.now("nvlm_requests_working"),
            waiting=window.now("nvlm_requests_waiting"),
            expected_wait=window.now("nvlm_expected_wait_seconds"),
            queue_p99=window.quantile("nvlm_queue_seconds", 0.99),
            first_token=_half_and_most(window, "nvlm_first_token_seconds"),
            between_tokens=_half_and_most(window, "nvlm_inter_token_seconds"),
            prompt_tokens=window.rate("nvlm_kv_prompt_tokens_total"),
            answer_tokens=window.rate("nvlm_decoder_tokens_total"),
            tiles=window.rate("nvlm_vision_cache_misses_total"),
            batch=window.ratio("nvlm_decoder_tokens_total", "nvlm_decoder_steps_total"),
            busy=window.rate("nvlm_decoder_step_seconds_total"),
            kv_used=_share(None if blocks is None or free is None else blocks - free, blocks),
            kv_blocks=blocks,
            kv_reused=window.ratio("nvlm_kv_reused_tokens_total", "nvlm_kv_prompt_tokens_total"),
            vision_used=_share(window.now("nvlm_vision_cache_bytes"), window.now("nvlm_vision_cache_max_bytes")),
            vision_hits=window.ratio(
                "nvlm_vision_cache_hits_total", "nvlm_vision_cache_hits_total", "nvlm_vision_cache_misses_total"
            ),
            refused={
                **window.rate_by("nvlm_refused_total", "reason"),
                **{
                    f"broken: {why}": rate
                    for why, rate in window.rate_by("nvlm_broken_streams_total", "reason").items()
                },
            },
            cancelled=window.rate("nvlm_cancelled_total"),
            restarts={
                why: count for why, count in window.now_by("nvlm_server_restarts_total", "reason").items() if count
            },
            memory=window.now_by("nvlm_process_resident_memory_bytes", "process"),
        )


def _half_and_most(window: Window, name: str) -> tuple[float | None, float | None]:
    return window.quantile(name, 0.5), window.quantile(name, 0.99)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
