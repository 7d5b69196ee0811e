"""How many tokens of a prompt the KV cache held already, as OpenAI's answers tell it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer

from .variants import engine_with

BLOCK = 32
"""Tokens of a block of the KV cache; whole blocks are shared, and never that of a prompt's last token."""


def to(server: TritonServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ask(server: TritonServer) -> Iterator[openai.OpenAI]:
    with to(server) as client:
        yield client


def chat(
    ask: openai.OpenAI, *messages: dict[str, Any], stream: bool = False
) -> tuple[str, openai.types.CompletionUsage]:
    """The answer's text and its usage."""
    asked: dict[str, Any] = {"model": "nvlm", "messages": messages, "max_tokens": 8}
    if not stream:
        answer = ask.chat.completions.create(**asked)
        return answer.choices[0].message.content, answer.usage
    *pieces, last = ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    return "".join(piece.choices[0].delta.content or "" for piece in pieces), last.usage


def cached(usage: openai.types.CompletionUsage | None) -> int | None:
    assert usage is not None
    return None if usage.prompt_tokens_details is None else usage.prompt_tokens_details.cached_tokens


def whole_blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_identical_chat_is_told_to_be_cached_and_the_first_is_not(ask: openai.OpenAI, stream: bool) -> None:
    system = {"role": "system", "content": f"No other test says this in stream={stream}, and it fills a block."}
    question = {"role": "user", "content": "What is it?"}
    (first_text, first), (second_text, second) = (chat(ask, system, question, stream=stream) for _ in range(2))
    assert second_text == first_text
    assert cached(first) == 0
    assert cached(second) == whole_blocks(second.prompt_tokens - 1) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_second_turn_about_an_image_finds_the_first(
    ask: openai.OpenAI, jpeg: Callable[[str], bytes], stream: bool
) -> None:
    system = {"role": "system", "content": f"Nor this, about an image, in stream={stream}: it is this test's own."}
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg('chelsea')).decode()}"
    image = {"type": "image_url", "image_url": {"url": uri}}
    asked = {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}
    text, first = chat(ask, system, asked, stream=stream)
    turns = (asked, {"role": "assistant", "content": text}, {"role": "user", "content": "And what colour?"})
    _, second = chat(ask, system, *turns, stream=stream)
    assert cached(first) == 0
    found = cached(second)
    assert found is not None
    assert whole_blocks(first.prompt_tokens) <= found < second.prompt_tokens


def test_a_completion_tells_it_too(ask: openai.OpenAI) -> None:
    first, second = (ask.completions.create(model="nvlm", prompt="Once " * 20, max_tokens=4).usage for _ in range(2))
    assert first is not None
    assert cached(second) == whole_blocks(first.prompt_tokens - 1) > 0


def test_a_server_whose_repository_does_not_know_of_it_answers_without(engine_dir: Path, tmp_path: Path) -> None:
    """One that was packaged before the decoder told it; the models of the gpu target are declared like that, too."""
    older = engine_with(engine_dir, tmp_path / "engine")
    changed = 0
    for config in (older / "triton_repo").glob("*/config.pbtxt"):
        text = config.read_text()
        without = re.sub(r'output \{\s+name: "num_cached_tokens"[^}]*\}\s', "", text)
        without = re.sub(r'output_map \{\s+key: "num_cached_tokens"[^}]*\}\s', "", without)
        assert "num_cached_tokens" not in without
        changed += without != text
        config.write_text(without)
    assert changed == 3
    with TritonServer(older, ports=Ports(0, 0, 0)) as server, to(server) as ask:
        texts, usages = zip(*(chat(ask, {"role": "user", "content": "Hello " * 40}) for _ in range(2)), strict=True)
    assert texts[0] == texts[1]
    assert [cached(usage) for usage in usages] == [None, None]
