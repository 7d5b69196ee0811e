"""What comes back: pieces of an answer, the answer, and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc
from tritonclient.grpc import InferResult
from tritonclient.utils import InferenceServerException

from nvlm_trt.errors import NvlmTrtError, RequestError, ServerError
from nvlm_trt.serving.decoder_tensors import CACHED_TOKENS
from nvlm_trt.serving.faults import NOT_SERVING, UnavailableError

CLIENT_FAULTS: Final = ("INVALID_ARGUMENT", "INVALID_ARG", "NOT_FOUND", "400", "404")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, and the natural logarithm of its probability."""

    id: int
    log_prob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        text: Its text.
        finish_reason: "stop" or "length".
        num_input_tokens: Tokens of the prompt, visual ones included.
        num_output_tokens: Tokens of the answer.
        tokens: They themselves, where `return_log_probs` asked for them.
        num_cached_tokens: Those of the prompt that the KV cache held already; None where the server does not tell.
    """

    text: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    tokens: tuple[Token, ...] = ()
    num_cached_tokens: int | None = None


class AnswerBuilder:
    """Joins the responses of one request."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._tokens: list[Token] = []
        self._told = 0
        self.answer: Answer | None = None

    def add(self, result: InferResult) -> str:
        """Take a response.

        Returns:
            The text that it adds.
        """
        text = result.as_numpy("text_output")
        if text is None:  # the empty response that ends a stream
            return ""
        piece = str(text[0].decode())
        self._pieces.append(piece)
        ids = result.as_numpy("output_ids")
        if ids is not None:
            log_probs = result.as_numpy("output_log_probs")
            self._tokens += [Token(*one) for one in zip(ids.tolist(), log_probs.tolist(), strict=True)]
        reason = result.as_numpy("finish_reason")[0].decode()
        if reason:
            read, written = (int(result.as_numpy(name)[0]) for name in ("num_input_tokens", "num_output_tokens"))
            held = result.as_numpy(CACHED_TOKENS[0])
            cached = None if held is None else int(held[0])
            self.answer = Answer("".join(self._pieces), reason, read, written, tuple(self._tokens), cached)
        return piece

    def new_tokens(self) -> tuple[Token, ...]:
        """Those that came since this was asked last."""
        fresh, self._told = tuple(self._tokens[self._told :]), len(self._tokens)
        return fresh

    def finished(self) -> Answer:
        """The answer.

        Raises:
            ServerError: the stream ended before the answer did.
        """
        if self.answer is None:
            raise ServerError("the answer broke off", fix="send the request again")
        return self.answer


def error_of(error: InferenceServerException | grpc.RpcError) -> NvlmTrtError:
    """The error of ours for one of tritonclient's, or of gRPC's: the asyncio client lets those of streams through."""
    if isinstance(error, grpc.RpcError):
        code, message = error.code().name, str(error.details())
    else:
        code, message = str(error.status() or "").removeprefix("StatusCode."), str(error.message())
    if code == "UNAVAILABLE" or NOT_SERVING.search(message):
        return UnavailableError("the server cannot be reached or is busy", seen=message, fix="try again later")
    if code in CLIENT_FAULTS:
        return RequestError(message)
    return ServerError(message or "the server failed")


def silence(seconds: float) -> ServerError:
    """The error for a server that says nothing."""
    return ServerError("the server fell silent", seen=f"no token for {seconds:g} s", fix="see the server's log")
