"""What a client is told when something goes wrong: a code and one sentence, never a traceback, a path or a repr."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Self

from nvlm_trt.errors import BusyError, NvlmTrtError, ServerError, UserError

Code = Literal["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"]

MARKS: Final[dict[Code, str]] = {"UNAVAILABLE": "unavailable: ", "INTERNAL": "internal error: "}
"""How messages begin that are no fault of the client: Triton's HTTP answers 400 for every error of a decoupled model,
and the gateway tells them apart by these."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as Triton carries it.

    Attributes:
        code: Name of a `TritonError` code. HTTP answers 400, 503, 499 and 500, in the order of `Code`.
        message: One sentence, after the code's mark.
    """

    code: Code
    message: str

    @classmethod
    def of(cls, code: Code, sentence: str) -> Self:
        """The fault with its mark."""
        return cls(code, MARKS.get(code, "") + sentence)


NOT_SERVING: Final = re.compile(
    r"unknown model: '(nvlm|ensemble)' (is not found|has no available versions)|server is (shutting down|stopping)",
    re.IGNORECASE,
)
"""What Triton says of a model to call that is not loaded yet, then of one that was unloaded, and of itself: the server
begins, ends or is replaced. Of other models, which a client may name by mistake, the first is said for good. On a
stream it comes as a message without a code."""

INNER_NOT_SERVING: Final = re.compile(r"unknown model: |server is (shutting down|stopping)", re.IGNORECASE)
"""The same where only models of ours are asked for."""

STEP: Final = re.compile(r"in ensemble '\w+', ")
"""How Triton begins the message of a step of an ensemble."""


class UnavailableError(ServerError):
    """The request can be sent again later."""


class CancelledByClientError(NvlmTrtError):
    """The client gave the request up."""


def fault_of(error: BaseException) -> Fault:
    """The answer to an exception; only errors of our own family speak for themselves."""
    if isinstance(error, CancelledByClientError):
        return Fault.of("CANCELLED", "the request was cancelled")
    if isinstance(error, UnavailableError | BusyError):
        return Fault.of("UNAVAILABLE", str(error))
    if isinstance(error, UserError):
        return Fault.of("INVALID_ARG", str(error))
    if isinstance(error, ServerError):
        return Fault.of("INTERNAL", str(error))
    return Fault.of("INTERNAL", "the server failed on this request; its log says why")


def error_of(code: str, message: str) -> NvlmTrtError:
    """The exception for an error that another model answered; the inverse of `fault_of`.

    Args:
        code: Name of the code, in Triton's spelling or gRPC's (``INVALID_ARGUMENT``); empty where none came.
        message: Its sentence.
    """
    if code == "NOT_FOUND" or INNER_NOT_SERVING.search(message):
        return UnavailableError("a model of the server is not loaded", fix="try again later")
    kinds: dict[str, type[NvlmTrtError]] = {
        "INVALID_ARG": UserError,
        "INVALID_ARGUMENT": UserError,
        "UNAVAILABLE": UnavailableError,
        "CANCELLED": CancelledByClientError,
    }
    kind = kinds.get(code)
    message = STEP.sub("", message, count=1)
    for mark in MARKS.values():
        message = message.removeprefix(mark)
    return kind(message) if kind else ServerError("a model of the server failed; its log says why")
