"""What a client is told when something goes wrong: a code and one sentence, never a traceback, a path or a repr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvlm_trt.errors import BusyError, NvlmTrtError, ServerError, UserError

Code = Literal["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as Triton carries it.

    Attributes:
        code: Name of a `TritonError` code. HTTP answers 400, 503, 499 and 500, in the order of `Code`.
        message: One sentence.
    """

    code: Code
    message: str


class UnavailableError(ServerError):
    """The request can be sent again later."""


class CancelledByClientError(NvlmTrtError):
    """The client gave the request up."""


def fault_of(error: BaseException) -> Fault:
    """The answer to an exception; only errors of our own family speak for themselves."""
    if isinstance(error, CancelledByClientError):
        return Fault("CANCELLED", "the request was cancelled")
    if isinstance(error, UnavailableError | BusyError):
        return Fault("UNAVAILABLE", str(error))
    if isinstance(error, UserError):
        return Fault("INVALID_ARG", str(error))
    if isinstance(error, ServerError):
        return Fault("INTERNAL", str(error))
    return Fault("INTERNAL", "the server failed on this request; its log says why")


def error_of(code: str, message: str) -> NvlmTrtError:
    """The exception for an error that another model answered; the inverse of `fault_of`.

    Args:
        code: Name of the code, in Triton's spelling or gRPC's (``INVALID_ARGUMENT``).
        message: Its sentence.
    """
    kinds: dict[str, type[NvlmTrtError]] = {
        "INVALID_ARG": UserError,
        "INVALID_ARGUMENT": UserError,
        "UNAVAILABLE": UnavailableError,
        "CANCELLED": CancelledByClientError,
    }
    kind = kinds.get(code)
    return kind(message) if kind else ServerError("a model of the server failed; its log says why")
