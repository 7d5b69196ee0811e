"""The model to call: one request from its fields to its answer, over the composing models.

The parts are asked for through `Backends`, so that this module knows neither Triton nor its tensors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.stopping import AnswerText
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.serving.preprocessing import NUM_TILES, TILES
from nvlm_trt.serving.requests import Tensors, parse_flag, parse_stop_words
from nvlm_trt.tracing import UNTRACED, Span, stage

Array = npt.NDArray[Any]
Reason = Literal["", "stop", "length"]

PREPARED_ONLY: Final = frozenset({TILES, NUM_TILES})
"""What preprocessing makes besides the decoder's inputs."""


class Decoded(NamedTuple):
    """New tokens of an answer, and their log-probabilities where they were asked for.

    `last` says that none will follow; where it is not known yet, the end of the iteration says so. `cached` is the
    number of the prompt's tokens that the KV cache held already; None where the decoder does not tell.
    """

    ids: Sequence[int]
    log_probs: Sequence[float] = ()
    last: bool = False
    cached: int | None = None


NO_TOKENS: Final = Decoded(())


@dataclass(frozen=True, slots=True)
class Piece:
    """A response of the `nvlm` model.

    Attributes:
        text: What is new when streaming, else the whole answer.
        reason: Why the answer ended; empty in all responses but the last.
        num_input_tokens: Tokens of the prompt, visual ones included.
        num_output_tokens: Tokens of the answer up to here, the end token not counted.
        num_tiles: Tiles of the request's images.
        tokens: Tokens with their log-probabilities that no earlier piece had; empty where nobody asked for them.
        num_cached_tokens: Those tokens of the prompt that the KV cache held already; None where that is not told.
    """

    text: str
    reason: Reason
    num_input_tokens: int
    num_output_tokens: int
    num_tiles: int = 0
    tokens: Decoded = NO_TOKENS
    num_cached_tokens: int | None = None


class Decoding(Protocol):
    """An answer in the making."""

    def __aiter__(self) -> AsyncIterator[Decoded]:
        """New tokens, as they come."""

    async def stop(self) -> None:
        """End it early; nothing to do when it has ended."""


class Backends(Protocol):
    """What a request goes through."""

    async def preprocess(self, tensors: Tensors, *, with_tiles: bool) -> Mapping[str, Array]:
        """What `nvlm_trt.serving.preprocessing` makes of a request's fields."""

    async def decode(self, inputs: Mapping[str, Array], tiles: Array | None, span: Span) -> Decoding:
        """Start the decoder, with the prompt table of these tiles where there are any; `span` is the request's."""


class Orchestrator:
    """Answers requests; one instance serves any number at once.

    Args:
        backends: What a request goes through.
        tokenizer: The checkpoint's tokenizer.
    """

    def __init__(self, backends: Backends, tokenizer: NvlmTokenizer) -> None:
        self._backends = backends
        self._tokenizer = tokenizer

    async def answer(self, tensors: Tensors, span: Span = UNTRACED) -> AsyncIterator[Piece]:
        """Answer one request.

        Leaving the iteration early, by closing it or by cancelling the task, ends the decoding.

        Args:
            tensors: The request's fields (`nvlm_trt.serving.fields.NVLM_FIELDS`).
            span: Of the request.

        Yields:
            Pieces whose texts join to the answer. Without `stream` there is one.

        Raises:
            NvlmTrtError: the request was refused, or a model failed.
        """
        stop_words = parse_stop_words(tensors)
        stream = parse_flag(tensors, "stream")
        fields = {name: values for name, values in tensors.items() if name != "stop_words"}
        with stage(span, "preprocessing") as within:
            prepared = await self._backends.preprocess(fields, with_tiles="image_bytes" in tensors)
            num_tiles = int(prepared[NUM_TILES][0])
            within.note({"nvlm.tiles": num_tiles})
        inputs = {name: values for name, values in prepared.items() if name not in PREPARED_ONLY}
        tiles = prepared[TILES] if num_tiles else None
        # Stop texts are found here, so the decoder has to show its tokens as they come.
        inputs["return_log_probs"] = np.array([[parse_flag(tensors, "return_log_probs")]])
        inputs["streaming"] = np.array([[stream or bool(stop_words)]])
        answer = _Answer(self._tokenizer, stop_words, inputs, num_tiles)
        decoding = await self._backends.decode(inputs, tiles, span)
        del prepared, tiles  # they are sent: nobody needs the pixels any more
        rest = ""
        try:
            async for decoded in decoding:
                fresh = answer.push(decoded)
                if decoded.last or answer.stopped:  # its text goes with the end: a response costs both processes
                    rest = fresh
                    break
                if stream and fresh:
                    yield answer.piece(fresh)
        finally:
            await decoding.stop()
        rest += answer.flush()
        yield answer.piece(rest if stream else answer.text, last=True)


class _Answer:
    """The text of one answer, and why it ended."""

    def __init__(
        self, tokenizer: NvlmTokenizer, stop_words: Sequence[str], inputs: Mapping[str, Array], num_tiles: int
    ) -> None:
        self._text = AnswerText(tokenizer, stop_words)
        self._end_id = tokenizer.eos_id
        self._num_input = int(inputs["input_lengths"].item())
        self._limit = int(inputs["request_output_len"].item())
        self._num_tiles = num_tiles
        self._count = 0
        self._cached: int | None = None
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._ended = False
        self.text = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop text or the end token was met."""
        return self._ended

    def push(self, decoded: Decoded) -> str:
        """Text that these tokens add; tokens after a stop are dropped, as if they had never been decoded."""
        fresh = ""
        self._cached = decoded.cached
        for place, index in enumerate(decoded.ids):
            if index == self._end_id:  # the C++ backend shows the end token, the cpu decoder does not
                self._ended = True
                break
            self._count += 1
            if decoded.log_probs:
                self._ids.append(index)
                self._log_probs.append(decoded.log_probs[place])
            fresh += self._text.push([index])
            if self._text.stopped:
                self._ended = True
                break
        self.text += fresh
        return fresh

    def flush(self) -> str:
        """The rest of the text."""
        rest = self._text.flush()
        self.text += rest
        return rest

    def piece(self, text: str, *, last: bool = False) -> Piece:
        """A response with this text."""
        reason: Reason = ""
        if last:
            reason = "length" if self._count >= self._limit and not self._ended else "stop"
        tokens, self._ids, self._log_probs = Decoded(self._ids, self._log_probs), [], []
        return Piece(text, reason, self._num_input, self._count, self._num_tiles, tokens, self._cached)
