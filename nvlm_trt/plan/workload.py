"""The requests that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all alike.

    Attributes:
        images: Images of a request.
        tiles: Tiles of an image, its thumbnail included.
        tokens_per_tile: Visual tokens of a tile.
        text_tokens: All other tokens of the prompt: template, tags, question.
        output_tokens: Tokens of the answer.
        concurrency: Requests under way at a time, evenly spread.
        ttft_limit_ms: The time to first token that is asked for, if there is one.
    """

    images: int
    tiles: int
    tokens_per_tile: int
    text_tokens: int
    output_tokens: int
    concurrency: int = 1
    ttft_limit_ms: float | None = None

    @property
    def total_tiles(self) -> int:
        """Tiles of a request."""
        return self.images * self.tiles

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of a request."""
        return self.total_tiles * self.tokens_per_tile

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.visual_tokens + self.text_tokens

    @property
    def request_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_context(self) -> int:
        """Tokens that a decode step sees on average: the prompt and half the answer."""
        return self.prompt_tokens + (self.output_tokens + 1) // 2
