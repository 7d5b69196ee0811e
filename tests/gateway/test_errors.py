"""Every error is one sentence without secrets, in the form of the API that was called."""

from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from nvlm_trt.errors import ImageRejected, PromptError, RequestError, ServerError
from nvlm_trt.gateway.errors import COME_BACK, OUR_FAULT, ApiError, api_error, plain
from nvlm_trt.logs import Formatter
from nvlm_trt.serving.faults import UnavailableError


@pytest.mark.parametrize(
    "message",
    [
        'Traceback (most recent call last):\n  File "/opt/x.py", line 3',
        "cannot open /srv/engines/secret/model.bin",
        "seen: '/etc/passwd'",
        "cannot identify image file <_io.BytesIO object at 0x7f0c1b2d3e40>",
        "<class 'ValueError'>",
        "PIL.UnidentifiedImageError",
        "broken PNG file (Pillow)",
        "failed at model.cc:88",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.3:8001: Connection refused",
        "[Errno 2] No such file",
    ],
)
def test_what_says_too_much_is_replaced(message: str) -> None:
    assert plain(message) == OUR_FAULT


@pytest.mark.parametrize(
    "message",
    [
        "image 1 of 2: the file is no image; expected: JPEG, PNG or WebP",
        "max_tokens is out of range; seen: 0; expected: 1 or more",
        "there is no such model; expected: a/b or nvlm",
        "unknown field; seen: max_token; did you mean max_tokens?",
    ],
)
def test_our_own_sentences_are_kept(message: str) -> None:
    assert plain(message) == message


def test_a_sentence_is_one_line_of_some_length() -> None:
    assert plain("what\nmore") == "what"
    assert len(plain("x" * 10_000)) <= 400
    assert plain("a\x00b\x1b[31m") == "ab[31m"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("max_tokens is out of range"), 400, None),
        (ImageRejected("image 1 of 1: the file is no image"), 400, "invalid_image"),
        (PromptError("the prompt is longer than the engine"), 400, "context_length_exceeded"),
        (UnavailableError("unavailable: the server is busy; try again later"), 503, "unavailable"),
        (ServerError("the answer broke off"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
        (TimeoutError(), 504, "deadline_exceeded"),
    ],
)
def test_an_exception_has_a_status_and_a_code(error: Exception, status: int, code: str | None) -> None:
    told = api_error(error)
    assert (told.status, told.code) == (status, code)
    assert "secret" not in told.sentence


def test_a_server_that_is_away_asks_to_come_back_and_says_no_address() -> None:
    told = api_error(UnavailableError("the server cannot be reached; seen: ipv4:127.0.0.1:8001"))
    assert (told.sentence, told.headers) == (COME_BACK, {"Retry-After": "1"})


def test_each_api_has_its_form() -> None:
    error = ApiError(429, "too often", "rate_limit_error", "rate_limit_exceeded", retry_after=2.4)
    assert json.loads(error.body("/v2/models/nvlm/generate")) == {"error": "too often"}
    form = {"message": "too often", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    assert json.loads(error.body("/v1/chat/completions")) == {"error": form}
    assert error.event("/v1/chat/completions") == b"data: " + json.dumps({"error": form}).encode() + b"\n\n"


@pytest.mark.parametrize(("wait", "told"), [(0.2, "1"), (2.0, "2"), (2.4, "3"), (5.6, "6")])
def test_whoever_comes_again_as_told_does_not_come_too_early(wait: float, told: str) -> None:
    assert ApiError(429, "too often", retry_after=wait).headers == {"Retry-After": told}


@pytest.mark.parametrize("error", [ServerError("the answer broke off"), KeyError("a bug")])
def test_what_a_client_is_not_told_the_log_says(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert api_error(error).sentence == OUR_FAULT
    [record] = caplog.records
    assert str(error) in Formatter("json").format(record)


@pytest.mark.parametrize("error", [RequestError("max_tokens is out of range"), UnavailableError("the server is busy")])
def test_what_a_client_is_told_is_no_error_of_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    api_error(error)
    assert caplog.records == []


def test_a_method_that_a_path_does_not_have_is_answered_with_those_it_has() -> None:
    assert api_error(HTTPException(405, headers={"Allow": "GET"})).headers == {"Allow": "GET"}
