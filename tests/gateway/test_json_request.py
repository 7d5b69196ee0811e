"""A client's mistake in JSON is named in one sentence before Triton sees it."""

from __future__ import annotations

import json

import pytest

from nvlm_trt.errors import RequestError
from nvlm_trt.gateway.json_request import check_generate
from nvlm_trt.serving.fields import NVLM_FIELDS, REQUEST_FIELDS


@pytest.mark.parametrize(
    "body",
    [
        {"text_input": "a"},
        {"text_input": ["a"], "max_tokens": 3, "temperature": 1, "seed": 2**64 - 1, "stream": False, "id": "7"},
        {"text_input": "a", "image_bytes": ["x", "y"], "stop_words": "end", "parameters": {"top_k": 5}},
    ],
)
def test_good_requests_pass(body: dict[str, object]) -> None:
    sent = json.dumps(body).encode()
    assert check_generate(sent, NVLM_FIELDS, stream=False) == sent


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON; seen: an empty body"),
        (b'{"text_input": "a', "not JSON; seen: Unterminated string"),
        (b"[]", "not an object; seen: a list"),
        (b"null", "not an object; seen: null"),
        (b"\xff{}", "not UTF-8"),
        ('{"text_input": "a"}'.encode("utf-16"), "not UTF-8"),
        (b'{"text_input": 3, "text_input": "a"}', "a field is there twice"),
        (b'{"text_input": "\\ud800"}', "half a surrogate pair"),
        (b"[" * 100_000, "no JSON that is read here"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "no JSON that is read here"),
        (b'{"text_input": 3}', "text_input is not text; seen: 3"),
        (b'{"text_input": null}', "text_input is not text; seen: null"),
        (b'{"text_input": ["a", "b"]}', "does not hold one value; seen: 2 values"),
        (b'{"max_tokens": "many"}', "max_tokens is not a whole number; seen: text"),
        (b'{"max_tokens": 1.5}', "max_tokens is not a whole number; seen: 1.5"),
        (b'{"max_tokens": true}', "max_tokens is not a whole number; seen: true or false"),
        (b'{"max_tokens": 2147483648}', "from -2147483648 to 2147483647"),
        (b'{"seed": -1}', "seed is not a whole number; seen: -1"),
        (b'{"temperature": NaN}', "temperature is not a finite number; seen: nan"),
        (b'{"temperature": 1e999}', "temperature is not a finite number; seen: inf"),
        (b'{"temperature": 1' + b"0" * 400 + b"}", "temperature is not a finite number; seen: 1000"),
        (b'{"temperature": -1e39}', "temperature is not a finite number; seen: -1e+39"),
        (b'{"stream": "yes"}', "stream is not true or false; seen: text"),
        (b'{"image_bytes": [{}]}', "image_bytes is not text; seen: an object"),
        (b'{"temprature": 1}', "unknown field; seen: temprature; did you mean temperature?"),
        (b'{"parameters": {"top_q": 1}}', "unknown field; seen: top_q"),
        (b'{"parameters": 1}', "parameters is not an object"),
    ],
)
def test_a_mistake_is_named(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_generate(body, NVLM_FIELDS, stream=False)
    assert message in str(caught.value)


def test_the_ensemble_has_no_stop_words() -> None:
    with pytest.raises(RequestError, match="stop_words"):
        check_generate(b'{"stop_words": "a"}', REQUEST_FIELDS, stream=False)


def test_who_calls_generate_stream_wants_a_stream_unless_the_request_says_no() -> None:
    passed_on = check_generate(b' {"text_input": "a"}', NVLM_FIELDS, stream=True)
    assert json.loads(passed_on) == {"stream": True, "text_input": "a"}
    for said in (b'{"text_input": "a", "stream": false}', b'{"parameters": {"stream": true}}', b"{}"):
        assert check_generate(said, NVLM_FIELDS, stream=True) == said


@pytest.mark.parametrize("body", [b'{"stream": true}', b'{"stream": [true]}', b'{"parameters": {"stream": true}}'])
def test_generate_cannot_stream_and_says_what_can(body: bytes) -> None:
    with pytest.raises(RequestError, match="call generate_stream"):
        check_generate(body, NVLM_FIELDS, stream=False)
