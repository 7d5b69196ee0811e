"""OpenAI's own client, unmodified, against the real server."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import openai
import pytest

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.host.server import TritonServer

Encode = Callable[[str], bytes]


def data_uri(file: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


def image_part(file: bytes) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": data_uri(file)}}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def counts(usage: openai.types.CompletionUsage | None) -> tuple[int, int, int]:
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


@pytest.fixture(scope="module")
def ask(server: TritonServer) -> Iterator[openai.OpenAI]:
    """The client, told the address and nothing else."""
    with openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_models_are_listed(ask: openai.OpenAI) -> None:
    assert [model.id for model in ask.models.list()] == ["functional", "nvlm"]
    assert ask.models.retrieve("nvlm").id == "nvlm"


def test_a_chat_is_answered_as_over_grpc(ask: openai.OpenAI, client: NvlmClient) -> None:
    answer = ask.chat.completions.create(
        model="functional", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=12
    )
    expected = client.generate("Hello", options=Options(max_tokens=12))
    (choice,) = answer.choices
    assert answer.usage is not None
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert answer.usage.prompt_tokens == expected.num_input_tokens
    assert answer.usage.completion_tokens == expected.num_output_tokens
    assert answer.usage.total_tokens == expected.num_input_tokens + expected.num_output_tokens


def test_images_and_turns_reach_the_model(ask: openai.OpenAI, client: NvlmClient, jpeg: Encode) -> None:
    files = [jpeg("chelsea"), jpeg("rocket")]
    answer = ask.chat.completions.create(
        model="nvlm",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [text_part("What is it?"), image_part(files[0])]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [text_part("And is"), image_part(files[1]), text_part("one?")]},
        ],
        max_tokens=10,
        extra_body={"max_tiles": 2},
    )
    expected = client.generate(
        "And is\n<image>\none?",
        images=files,
        history=[("<image>\nWhat is it?", "A cat.")],
        system="Be brief.",
        options=Options(max_tokens=10, max_tiles=2),
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.num_input_tokens


def test_a_stream_joins_to_the_whole_answer_and_ends_with_its_usage(ask: openai.OpenAI, jpeg: Encode) -> None:
    asked = {
        "model": "nvlm",
        "messages": [{"role": "user", "content": [image_part(jpeg("chelsea")), text_part("Tell me")]}],
        "max_tokens": 30,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 7,
    }
    whole = ask.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    *pieces, last = chunks
    assert last.choices == []
    assert counts(last.usage) == counts(whole.usage)
    assert all(piece.usage is None for piece in pieces)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, whole.choices[0].finish_reason]
    assert len({piece.id for piece in chunks}) == 1


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(ask: openai.OpenAI) -> None:
    asked = {"model": "nvlm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}
    text = ask.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
    assert text is not None
    stop = text[8:11]
    choice = ask.chat.completions.create(**asked, stop=[stop]).choices[0]  # type: ignore[call-overload]
    assert choice.message.content == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_completion_is_answered_whole_and_as_a_stream(ask: openai.OpenAI) -> None:
    whole = ask.completions.create(model="nvlm", prompt="Hello", max_tokens=12)
    pieces = list(ask.completions.create(model="nvlm", prompt="Hello", max_tokens=12, stream=True))
    assert whole.choices[0].text
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_ignore_eos_gives_the_asked_number_of_tokens(ask: openai.OpenAI) -> None:
    answer = ask.chat.completions.create(
        model="nvlm",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=200,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (200, "length")


@pytest.mark.parametrize(
    ("changed", "status", "code", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"n": 2}, 400, "invalid_value", None),
        ({"extra_body": {"max_token": 2}}, 400, "unknown_parameter", "max_token"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, 400, "context_length_exceeded", None),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": [image_part(b"no image")]}]}, 400, "invalid_image", None),
        ({"messages": [{"role": "user", "content": [image_part(b"a")] * 4}]}, 400, "too_many_images", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_refused_in_openais_form(
    ask: openai.OpenAI, changed: dict[str, object], status: int, code: str, param: str | None, stream: bool
) -> None:
    asked = {"model": "nvlm", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": stream}
    with pytest.raises(openai.APIStatusError) as refusal:
        ask.chat.completions.create(**{**asked, **changed})  # type: ignore[call-overload]
    error = refusal.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert error.type == "invalid_request_error"
