"""Log-probabilities through the gateway are those of the torch reference, token by token."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openai
import pytest
import torch

from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference

TOKENS = 12
NEAR = 2e-3
"""Of the engine's float32 to the reference's, in a logarithm."""


@pytest.fixture(scope="module")
def asked(server: TritonServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module", params=["text", "image"])
def case(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, local: LocalEngine, jpeg: Callable[[str], bytes]
) -> tuple[list[dict[str, object]], list[int], list[float]]:
    """A question, and the reference's own tokens with their log-probabilities."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    images = [jpeg("chelsea")] if request.param == "image" else []
    prepared = local.prepare("What is it?", images=images)
    tiles = [local.tiles(data) for data in images]
    table = VisionReference(checkpoint)(np.concatenate(tiles)).flatten(0, 1) if images else None
    steps = DecoderReference(checkpoint).greedy_steps(prepared.decoder_ids, table, max_tokens=TOKENS, stop_ids=[])
    tokens = [token for token, _ in steps]
    values = [float(torch.log_softmax(logits.double(), -1)[token]) for token, logits in steps]
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}}
        for data in images
    ]
    return [*parts, {"type": "text", "text": "What is it?"}], tokens, values


def ask(client: openai.OpenAI, content: object, **more: object) -> openai.types.chat.ChatCompletion:
    messages = [{"role": "user", "content": content}]
    extra = {"ignore_eos": True}
    return client.chat.completions.create(  # type: ignore[call-overload,no-any-return]
        model="nvlm", messages=messages, max_tokens=TOKENS, extra_body=extra, **more
    )


def test_they_are_those_of_the_reference(
    asked: openai.OpenAI, local: LocalEngine, case: tuple[list[dict[str, object]], list[int], list[float]]
) -> None:
    content, tokens, values = case
    choice = ask(asked, content, logprobs=True).choices[0]
    assert choice.logprobs is not None
    said = choice.logprobs.content or []
    assert [one.logprob for one in said] == pytest.approx(values, abs=NEAR)
    assert [bytes(one.bytes or []) for one in said] == [local.tokenizer.token_bytes(token) for token in tokens]
    joined = b"".join(bytes(one.bytes or []) for one in said).decode(errors="replace")
    assert joined.strip() == choice.message.content  # an answer begins and ends without spaces, as the release has it


def test_a_stream_tells_each_once(
    asked: openai.OpenAI, case: tuple[list[dict[str, object]], list[int], list[float]]
) -> None:
    content, _, values = case
    seen = []
    for chunk in ask(asked, content, logprobs=True, stream=True):
        for choice in chunk.choices:
            seen += (choice.logprobs.content or []) if choice.logprobs else []
    assert [one.logprob for one in seen] == pytest.approx(values, abs=NEAR)


def test_nobody_who_does_not_ask_is_told(asked: openai.OpenAI) -> None:
    assert ask(asked, "x").choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="top_logprobs is not supported"):
        ask(asked, "x", logprobs=True, top_logprobs=2)
