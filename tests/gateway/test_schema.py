"""What a request may say: OpenAI's fields within their ranges, no silence about those that cannot be honoured."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from nvlm_trt.client import Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.gateway.errors import ApiError, api_error
from nvlm_trt.gateway.schema import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"model": "nvlm", "messages": [{"role": "user", "content": "x"}]}


def chat(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({**CHAT, **fields})


def refusal(body: dict[str, Any]) -> ApiError:
    """What a client is told about a body."""
    with pytest.raises(ValidationError) as found:
        ChatRequest.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in found.value.errors()]
    return api_error(RequestValidationError(errors, body=body))


def test_fields_become_options() -> None:
    options = chat(
        max_completion_tokens=9, max_tokens=8, temperature=1, top_p=0.5, seed=3, stop="a", top_k=4, max_tiles=2
    ).options()
    expected = Options(max_tokens=9, temperature=1, top_p=0.5, seed=3, stop_words=("a",), top_k=4, max_tiles=2)
    assert options == expected
    assert chat(max_tokens=8, stop=["a", "b"]).options() == Options(max_tokens=8, stop_words=("a", "b"))


def test_what_is_not_said_is_left_to_the_server() -> None:
    assert chat().options() == Options()
    nothing = {name: None for name in ChatRequest.model_fields if name not in CHAT}
    assert chat(**nothing).options() == Options()


def test_a_completion_has_16_tokens_unless_it_says_otherwise() -> None:
    asked = CompletionRequest(model="nvlm", prompt=["x"])
    assert (asked.text, asked.options()) == ("x", Options(max_tokens=16))


@pytest.mark.parametrize("top_p", [0, 0.0, 1e-50])
@pytest.mark.parametrize("others", [{}, {"temperature": 1.5}, {"temperature": 1, "top_k": 40}])
def test_a_nucleus_of_nothing_is_the_most_likely_token(top_p: float, others: dict[str, Any]) -> None:
    options = chat(top_p=top_p, **others).options()
    assert SamplingParams(1, options.temperature, options.top_k, options.top_p).greedy
    assert not SamplingParams(1, 1.5, None, chat(top_p=0.001, temperature=1.5).options().top_p).greedy


def test_a_negative_seed_is_a_seed() -> None:
    assert chat(seed=-1).options().seed == (1 << 64) - 1


def test_ignore_eos_means_all_of_the_tokens() -> None:
    assert chat(ignore_eos=True, max_tokens=5).options() == Options(max_tokens=5, min_tokens=5)
    with pytest.raises(ApiError, match="ignore_eos needs a number of tokens"):
        chat(ignore_eos=True).options()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0.0, "presence_penalty": 0},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}},
        {"user": "somebody", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(fields: dict[str, object]) -> None:
    assert chat(**fields).options() == Options()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "a"}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field: str, value: object) -> None:
    error = refusal({**CHAT, field: value})
    assert (error.status, f"{field} is not supported" in error.sentence) == (400, True)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_token": 5}, "unknown_parameter", "max_token"),
        ({"max_tokens": "5"}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1 << 40}, "invalid_value", "max_tokens"),
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"temperature": float("nan")}, "invalid_value", "temperature"),
        ({"temperature": 10**400}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"top_p": 10**400}, "invalid_value", "top_p"),
        ({"repetition_penalty": 10**400}, "invalid_value", "repetition_penalty"),
        ({"repetition_penalty": 100.5}, "invalid_value", "repetition_penalty"),
        ({"repetition_penalty": 0.001}, "invalid_value", "repetition_penalty"),
        ({"stream": 1}, "invalid_value", "stream"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_value", "messages[0].content"),
        ({"stop": ["a", 5]}, "invalid_value", "stop[1]"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "invalid_value",
            "messages[0].content[0]",
        ),
    ],
)
def test_a_mistake_names_its_field(fields: dict[str, object], code: str, param: str) -> None:
    error = refusal({**CHAT, **fields})
    assert (error.status, error.code, error.param) == (400, code, param)
    assert "\n" not in error.sentence
