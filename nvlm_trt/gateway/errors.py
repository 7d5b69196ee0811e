"""Every answer that is an error, from one place: a status, OpenAI's or KServe's form, a sentence without secrets."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from nvlm_trt.errors import NvlmTrtError, UserError
from nvlm_trt.logs import fields
from nvlm_trt.serving.faults import MARKS, STEP, UnavailableError

MAX_SENTENCE: Final = 400

OUR_FAULT: Final = "the server failed on this request; its log says why"
COME_BACK: Final = "the server is busy or being replaced; try again in a moment"
LOST: Final = "the server lost this request; send it again"

LEAKS: Final = re.compile(
    r"Traceback|File \"|0x[0-9a-fA-F]{4,}|<class |<[\w.]+ object|object at |\bPIL\b|Pillow|\.py\b|\.cc:|\\n"
    r"|(?:^|[\s'\"(=:])(?:/[\w.+-]+){2,}|\bipv[46]:|errno|127\.0\.0\.1",
    re.IGNORECASE,
)
"""What no client may read: traces, addresses, names of types, paths of the server, the library that reads images."""

CODES: Final = (
    (re.compile(r"image \d+ of \d+"), "invalid_image"),
    (re.compile(r"there are too many images|there are more images"), "too_many_images"),
    (re.compile(r"the prompt (and max_tokens )?(is|are) longer than"), "context_length_exceeded"),
)
"""Codes for sentences of the models; OpenAI's own where it has one."""

HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
"""Codes for FastAPI's own refusals."""

NO_JSON: Final = "the request is not JSON; expected: a JSON object"

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal or a failure, ready to be sent.

    Attributes:
        status: HTTP's.
        message: One sentence; sanitised when it is sent.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: The field that is at fault.
        retry_after: Seconds after which it may work.
        allow: Methods that the path has, where another one was used.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    allow: str | None = None

    @property
    def sentence(self) -> str:
        """The message as a client may read it."""
        return plain(self.message)

    @property
    def word(self) -> str:
        """The error in a word: for metrics, logs and spans."""
        return self.code or f"status_{self.status}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it; whoever comes again when they say so does not come too early."""
        headers = {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after is not None else {}
        headers |= {"Allow": self.allow} if self.allow is not None else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self, path: str) -> bytes:
        """The body for a path: KServe's form below ``/v2/``, OpenAI's elsewhere."""
        if path.startswith("/v2/"):
            return json.dumps({"error": self.sentence}).encode()
        error = {"message": self.sentence, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self, path: str) -> bytes:
        """The event that ends a stream."""
        return b"data: " + self.body(path) + b"\n\n"


def plain(message: str) -> str:
    """A message's first line, or another one where that says what it should not."""
    message = STEP.sub("", message, count=1) if "\n" in message else message
    line = message.strip().split("\n", 1)[0][:MAX_SENTENCE]
    if LEAKS.search(line):
        return OUR_FAULT
    return "".join(character for character in line if character.isprintable()) or OUR_FAULT


def unavailable(message: str = COME_BACK, code: str = "unavailable") -> ApiError:
    """The refusal of a server that cannot take the request now."""
    return ApiError(503, message, "server_error", code, retry_after=1)


def too_late() -> ApiError:
    """The error of a request that took longer than its deadline."""
    return ApiError(504, "the request took longer than it may", "server_error", "deadline_exceeded")


def api_error(error: BaseException) -> ApiError:
    """What a client is told about an exception; only our own family and FastAPI's refusals speak for themselves."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation(error)
    if isinstance(error, HTTPException) and error.status_code == 400:  # a body that FastAPI cannot read
        return ApiError(400, NO_JSON, code="invalid_json")
    if isinstance(error, HTTPException):
        allow = (error.headers or {}).get("Allow")
        return ApiError(error.status_code, str(error.detail), code=HTTP_CODES.get(error.status_code), allow=allow)
    if isinstance(error, TimeoutError):
        return too_late()
    if isinstance(error, UnavailableError):
        ours = next((mark for mark in (MARKS["UNAVAILABLE"],) if mark in str(error)), None)
        return unavailable(str(error).partition(ours)[2].partition("; try again")[0] if ours else COME_BACK)
    if isinstance(error, UserError):
        return ApiError(400, str(error), code=_code(str(error)))
    if isinstance(error, NvlmTrtError):
        log.error("a request failed", extra=fields(reason=str(error)))
    else:
        log.error("a request failed", exc_info=error)
    return ApiError(500, OUR_FAULT, "server_error", "internal_error")


def _code(message: str) -> str | None:
    return next((code for pattern, code in CODES if pattern.match(message)), None)


def _validation(error: RequestValidationError) -> ApiError:
    """The first fault that pydantic found, in OpenAI's words where it has some."""
    first: dict[str, Any] = error.errors()[0]
    body = getattr(error, "body", None)
    param = _param(first["loc"][1:], body)
    kind = first["type"]
    if kind == "json_invalid":
        return ApiError(400, NO_JSON, code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", code="unknown_parameter", param=param)
    if kind == "missing":
        missing = f"{param}.{first['loc'][-1]}" if param else str(first["loc"][-1])
        return ApiError(
            400, f"Missing required parameter: '{missing}'", code="missing_required_parameter", param=missing
        )
    said = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"Invalid value for '{param or 'the body'}': {said}", code="invalid_value", param=param)


def _param(location: tuple[int | str, ...], body: object) -> str | None:
    """The path of a field in the body; pydantic's names of a union's members are no part of it."""
    path, here = "", body
    for step in location:
        if isinstance(here, dict) and step in here:
            path, here = f"{path}.{step}" if path else str(step), here[step]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
    return path[:64] or None
