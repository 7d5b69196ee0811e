"""What the decoder is asked, and what it answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""Why a request ended: a stop id or text, max_tokens, the caller, or a fault."""

MAX_STOP_TEXTS = 16
MAX_SEED = 2**64 - 1
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. The defaults are greedy, as the released chat() decodes.

    Attributes:
        max_tokens: Tokens of the answer at most.
        temperature: Divides the logits; 0 is greedy. None is greedy too, unless top_k or top_p ask for a draw: then 1.
        top_k: Keep the k best tokens; None or 0 keeps all, 1 is greedy.
        top_p: Keep the smallest set of tokens with at least this probability; None, 0 and 1 keep all (TensorRT-LLM
            ignores values up to 0).
        repetition_penalty: Divides positive and multiplies negative logits of tokens of the prompt and the answer so
            far; 1 is off. Visual tokens do not count.
        seed: Of the request's own random numbers; None draws one.
        min_tokens: Stop ids are forbidden before this many tokens.
        stop_ids: Tokens that end the answer; they are no part of it.
        stop: Texts that end the answer; they are no part of it. The engine knows no text: `stopping.AnswerText` finds
            them and its caller cancels.
        log_probs: Whether each token comes with its log-probability.
    """

    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    log_probs: bool = False

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED)
        _number("repetition_penalty", self.repetition_penalty, low=MIN_PENALTY, high=MAX_PENALTY)
        if self.temperature is not None:
            _number("temperature", self.temperature, low=0.0)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 0)
        if self.top_p is not None:
            _number("top_p", self.top_p, low=0.0, high=1.0)
        _items("stop_ids", self.stop_ids, int)
        _items("stop", self.stop, str)
        if len(self.stop) > MAX_STOP_TEXTS or not all(self.stop):
            seen = f"{len(self.stop)} texts" if all(self.stop) else "an empty text"
            raise RequestError("stop is out of range", seen=seen, expected=f"up to {MAX_STOP_TEXTS} texts, none empty")

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken, so that no random number is drawn."""
        if self.top_k == 1:
            return True
        if self.temperature is None:
            return not self.top_k and self.top_p in (None, 0.0, 1.0)
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One request to the decoder.

    Attributes:
        request_id: Unique among the requests in the engine.
        input_ids: int32 [tokens]; an id at or above vocab_size is row ``id - vocab_size`` of the prompt table.
        prompt_table: float32 [rows, hidden], or None for a prompt without visual tokens.
        sampling: How tokens are chosen.
    """

    request_id: str
    input_ids: npt.NDArray[np.int32]
    prompt_table: npt.NDArray[np.float32] | None
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A step of an answer, in order; the last one of a request has a finish_reason.

    Attributes:
        request_id: Whose.
        token: The new token; None when the request ends without one (a stop id, a cancellation, a fault).
        finish_reason: Why the request ended; None while it goes on.
        error: One sentence, when finish_reason is "error".
        log_prob: Natural logarithm of the token's probability by the model's logits, before penalties, temperature and
            what else chooses; where it was asked for.
    """

    request_id: str
    token: int | None
    finish_reason: FinishReason | None = None
    error: str | None = None
    log_prob: float | None = None


EventSink = Callable[[TokenEvent], None]
"""Called on the engine's worker thread, or by whoever cancels, so it must be quick; if it raises, its request ends."""


def check_request(request: DecodeRequest, config: DecoderEngineConfig, cache_tokens: int) -> None:
    """Refuse what the engine cannot serve.

    Args:
        request: The request.
        config: The engine's shapes and limits.
        cache_tokens: Tokens that the whole KV cache holds.

    Raises:
        RequestError: saying which limit, the value and the limit.
    """
    ids = request.input_ids
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype != np.int32:
        seen = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else type(ids).__name__
        raise RequestError("input_ids has the wrong type", seen=seen, expected="int32 [tokens]")
    if not ids.size:
        raise RequestError("the prompt is empty", seen="0 tokens", expected="1 or more")
    rows = _table_rows(request.prompt_table, config)
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size + rows:
        worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        expected = f"0 to {config.vocab_size + rows - 1} ({config.vocab_size} tokens, {rows} rows of the prompt table)"
        raise RequestError("an id of the prompt is out of range", seen=worst, expected=expected)
    longest = min(config.max_seq_len, cache_tokens)
    bound = "engine" if longest == config.max_seq_len else "KV cache"
    check_length(ids.size, request.sampling.max_tokens, longest, bound)


def check_length(prompt: int, answer: int, longest: int, bound: str) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Args:
        prompt: Its tokens.
        answer: Tokens of the answer at most.
        longest: Both at most.
        bound: What holds no more.

    Raises:
        RequestError: with the counts and the limit.
    """
    if prompt + answer > longest:
        raise RequestError(
            f"the prompt and max_tokens are longer than the {bound}",
            seen=f"{prompt} + {answer} tokens",
            expected=f"at most {longest}",
            fix="shorten the prompt, use fewer tiles, or ask for fewer tokens",
        )


def _table_rows(table: npt.NDArray[np.float32] | None, config: DecoderEngineConfig) -> int:
    if table is None:
        return 0
    if not isinstance(table, np.ndarray) or table.dtype != np.float32 or table.ndim != 2:
        seen = f"{table.dtype} {list(table.shape)}" if isinstance(table, np.ndarray) else type(table).__name__
        raise RequestError("the prompt table has the wrong type", seen=seen, expected="float32 [rows, hidden]")
    rows, width = table.shape
    if width != config.hidden_size or rows > config.max_prompt_table_rows:
        raise RequestError(
            "the prompt table does not fit the engine",
            seen=f"{rows} x {width}",
            expected=f"at most {config.max_prompt_table_rows} x {config.hidden_size}",
        )
    if not np.isfinite(table).all():
        raise RequestError("the prompt table holds values that are not finite", seen="NaN or infinity")
    return int(rows)


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    expected = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} is not a whole number", seen=repr(value), expected=expected)
    if value < low or (high is not None and value > high):
        raise RequestError(f"{name} is out of range", seen=value, expected=expected)


def _number(name: str, value: object, *, low: float, high: float = math.inf) -> None:
    expected = f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else "")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name} is not a number", seen=repr(value), expected=expected)
    if not low <= value <= min(high, sys.float_info.max):
        raise RequestError(f"{name} is out of range", seen=value, expected=expected)


def _items(name: str, values: object, kind: type) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, kind) and value is not True for value in values):
        raise RequestError(f"{name} is not a list of {kind.__name__}", seen=repr(values), expected=f"{kind.__name__}s")
