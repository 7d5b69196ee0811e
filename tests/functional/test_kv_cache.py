"""Shared prefixes are not computed again, whatever else is going on, and the cache keeps within its bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvlm_trt.client import AsyncNvlmClient, NvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.errors import RequestError
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine

from .shown import figures
from .variants import engine_with

PREFIX = "nvlm_kv_"
BLOCK = 32
TOKENS = 16
OPTIONS = Options(max_tokens=TOKENS, min_tokens=TOKENS)


@pytest.fixture(scope="module")
def bounded(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose KV cache has a bound of 1 MiB: room for a few requests."""
    out = engine_with(engine_dir, tmp_path_factory.mktemp("bounded") / "engine", kv_cache_mib=1)
    with TritonServer(out, ports=Ports(0, 0, 0)) as running:
        yield running


@pytest.fixture(scope="module")
def plain(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    """The same engines in this process, where nothing is kept."""
    out = tmp_path_factory.mktemp("plain") / "engine"
    with LocalEngine(engine_with(engine_dir, out, vision_cache_mib=0, kv_cache_reuse=False)) as engine:
        yield engine


@pytest.fixture(scope="module")
def sharing(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    """The same engines in this process, as the recipe has them."""
    with LocalEngine(engine_with(engine_dir, tmp_path_factory.mktemp("sharing") / "engine")) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(plain: LocalEngine) -> Callable[..., str]:
    """The answer to a question that is asked alone."""
    return lambda prompt, **more: plain.generate(prompt, SamplingParams(TOKENS, min_tokens=TOKENS), **more).text


def settled(server: TritonServer, prompt_tokens: float) -> dict[str, float]:
    """The figures once prompts of so many tokens were admitted and have ended: they are told just after an answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        seen = figures(server, PREFIX)
        if seen["prompt_tokens_total"] >= prompt_tokens and seen["running_requests"] == 0:
            break
        time.sleep(0.02)
    return seen


def test_the_second_turn_about_an_image_finds_the_first_and_the_metrics_port_says_so(bounded, jpeg, expected):
    image, question = jpeg("chelsea"), "What is it?"
    start = figures(bounded, PREFIX)["prompt_tokens_total"]
    with NvlmClient(bounded.grpc_url, idle_timeout=60) as client:
        first = client.generate(question, images=[image], options=OPTIONS)
        before = settled(bounded, start + first.num_input_tokens)
        turns = [(f"<image>\n{question}", first.text)]
        second = client.generate("And what colour?", images=[image], history=turns, options=OPTIONS)
        after = settled(bounded, start + first.num_input_tokens + second.num_input_tokens)
    assert first.text == expected(question, images=[image])
    assert second.text == expected("And what colour?", images=[image], history=turns)
    assert after["prompt_tokens_total"] - before["prompt_tokens_total"] == second.num_input_tokens
    assert after["reused_tokens_total"] - before["reused_tokens_total"] >= first.num_input_tokens // BLOCK * BLOCK
    assert after["free_blocks"] == after["blocks"]
    assert 0 < after["cached_blocks"] <= after["blocks"]


def test_the_images_place_in_the_history_decides_what_is_shared(sharing, plain, jpeg):
    """Without ``<image>`` in the history the released template moves the image in front of the last question."""
    image, sampling = jpeg("coffee"), SamplingParams(TOKENS, min_tokens=TOKENS)

    def reused(history: list[tuple[str, str]]) -> int:
        before = sharing.decoder.status().reused_tokens
        answer = sharing.generate("And the cup?", sampling, images=[image], history=history)
        assert answer.output_ids == plain.generate("And the cup?", sampling, images=[image], history=history).output_ids
        return sharing.decoder.status().reused_tokens - before

    first = sharing.generate("What is it?", sampling, images=[image])
    assert reused([("<image>\nWhat is it?", first.text)]) >= len(first.input_ids) // BLOCK * BLOCK
    assert reused([("What is it?", first.text)]) < BLOCK


def test_equal_prompts_about_different_images_and_tile_limits_have_their_own_answers(bounded, jpeg, plain):
    asked = [(name, most) for name in ("astronaut", "chelsea", "rocket") for most in (1, 2, 6)] * 3
    answers = ask_all(
        bounded,
        [("Describe it.", [jpeg(name)], Options(TOKENS, TOKENS, max_tiles=most)) for name, most in asked],
    )
    sampling = SamplingParams(TOKENS, min_tokens=TOKENS)
    expected = [plain.stream("Describe it.", sampling, images=[jpeg(name)], max_tiles=most) for name, most in asked[:9]]
    texts = [each.result.text for each in expected]
    assert answers == texts * 3
    assert len(set(texts)) > 3


def test_more_requests_than_the_cache_holds_wait_for_their_turn_and_are_exact(bounded, jpeg, expected):
    image = jpeg("rocket")
    asked = [(f"{'Tell me more. ' * (number % 5)}{number}", [image] * (number % 2)) for number in range(32)]
    before = figures(bounded, PREFIX)
    answers = ask_all(bounded, [(prompt, images, OPTIONS) for prompt, images in asked])
    assert answers == [expected(prompt, images=images) for prompt, images in asked]
    after = settled(bounded, before["prompt_tokens_total"] + 1)
    assert after["evicted_blocks_total"] > before["evicted_blocks_total"]
    assert after["reused_tokens_total"] > before["reused_tokens_total"]


def test_a_request_that_the_cache_can_never_hold_is_refused_with_the_figures(bounded):
    most = int(figures(bounded, PREFIX)["blocks"]) * BLOCK
    with NvlmClient(bounded.grpc_url) as client:
        with pytest.raises(RequestError, match=f"longer than the KV cache.*at most {most}"):
            client.generate("What is it? " * 80, options=Options(max_tokens=400))
        assert client.generate("Hello", options=OPTIONS).num_output_tokens == TOKENS


def ask_all(server: TritonServer, asked: list[tuple[str, list[bytes], Options]]) -> list[str]:
    """Answers to requests that are sent at once."""

    async def run() -> list[str]:
        async with AsyncNvlmClient(server.grpc_url, idle_timeout=60) as client:

            async def one(prompt: str, images: list[bytes], options: Options) -> str:
                return (await client.generate(prompt, images=images, options=options)).text

            return list(await asyncio.gather(*(one(*each) for each in asked)))

    return asyncio.run(run())
