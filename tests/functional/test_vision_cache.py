"""Images seen before are not encoded again, and never answered with another's rows: a real server, under load."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from nvlm_trt.client import AsyncNvlmClient, NvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine

from .shown import figures
from .variants import engine_with

PREFIX = "nvlm_vision_cache_"
PROMPT = "What is it?"
TOKENS = 12
IMAGES = 40
MAX_TILES = (1, 3, 6)
TILE_BYTES = 16 * 128 * 4

Asked = tuple[int, int]
"""Number of an image, and max_tiles."""


@pytest.fixture(scope="module")
def pressed(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose cache holds 128 tiles, so that those of 40 images push one another out."""
    out = engine_with(engine_dir, tmp_path_factory.mktemp("pressed") / "engine", vision_cache_mib=1)
    with TritonServer(out, ports=Ports(0, 0, 0)) as running:
        yield running


@pytest.fixture(scope="module")
def images(photographs: dict[str, Image.Image]) -> list[bytes]:
    """Parts of photographs that give 6 tiles and a thumbnail, each with a file of its own."""
    files = []
    for number in range(IMAGES):
        photograph = list(photographs.values())[number % 3]
        left, top = 3 * number, 2 * number
        file = io.BytesIO()
        photograph.crop((left, top, left + 180, top + 120)).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def expected(
    engine_dir: Path, images: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Asked], str]]:
    """Answers of the same engines in this process with nothing kept, each asked for alone."""
    out = tmp_path_factory.mktemp("plain") / "engine"
    known: dict[Asked, str] = {}
    with LocalEngine(engine_with(engine_dir, out, vision_cache_mib=0, kv_cache_reuse=False)) as plain:

        def answer(asked: Asked) -> str:
            if asked not in known:
                number, most = asked
                sampling = SamplingParams(TOKENS, min_tokens=TOKENS)
                known[asked] = plain.stream(PROMPT, sampling, images=[images[number]], max_tiles=most).result.text
            return known[asked]

        yield answer
        assert plain.vision.status().tiles == 0


def settled(server: TritonServer, tiles: int) -> dict[str, float]:
    """The figures once so many tiles have been asked for: they are told just after an answer."""
    deadline = time.monotonic() + 10
    seen = figures(server, PREFIX)
    while seen["hits_total"] + seen["misses_total"] < tiles and time.monotonic() < deadline:
        time.sleep(0.02)
        seen = figures(server, PREFIX)
    return seen


def options(max_tiles: int) -> Options:
    return Options(max_tokens=TOKENS, min_tokens=TOKENS, max_tiles=max_tiles)


def ask_all(server: TritonServer, images: list[bytes], asked: list[Asked]) -> list[str]:
    """Answers to requests that are sent at once."""

    async def run() -> list[str]:
        async with AsyncNvlmClient(server.grpc_url, idle_timeout=60) as client:

            async def one(number: int, most: int) -> str:
                return (await client.generate(PROMPT, images=[images[number]], options=options(most))).text

            return list(await asyncio.gather(*(one(*each) for each in asked)))

    return asyncio.run(run())


def test_a_repeated_image_is_not_encoded_again_and_the_metrics_port_says_so(pressed, images, expected):
    before = figures(pressed, PREFIX)
    assert before["max_bytes"] == 1 << 20
    asked = before["hits_total"] + before["misses_total"]
    with NvlmClient(pressed.grpc_url, idle_timeout=60) as client:
        answers = [client.generate(PROMPT, images=[images[0]], options=options(6)).text for _ in range(3)]
    assert answers == [expected((0, 6))] * 3
    after = settled(pressed, asked + 3 * 7)
    assert after["misses_total"] - before["misses_total"] == 7
    assert after["hits_total"] - before["hits_total"] == 2 * 7
    assert after["bytes"] == after["tiles"] * TILE_BYTES


def test_different_images_with_equal_prompts_at_the_same_time_have_their_own_answers(pressed, images, expected):
    asked = [(number % 4, 6) for number in range(32)]
    answers = ask_all(pressed, images, asked)
    assert answers == [expected(each) for each in asked]
    assert len(set(answers)) > 1


def test_the_same_image_with_other_tile_limits_has_other_answers(pressed, images, expected):
    asked = [(5, most) for most in MAX_TILES] * 4
    answers = ask_all(pressed, images, asked)
    assert answers == [expected(each) for each in asked]
    assert len(set(answers)) == len(MAX_TILES)


def test_answers_are_exact_while_images_push_one_another_out(pressed, images, expected):
    before = figures(pressed, PREFIX)
    asked = [((7 * turn) % IMAGES, MAX_TILES[turn % 3]) for turn in range(2 * IMAGES)]
    asked += [(turn % 5, 6) for turn in range(20)]
    answers = ask_all(pressed, images, asked)
    assert answers == [expected(each) for each in asked]
    after = figures(pressed, PREFIX)
    assert after["evictions_total"] > before["evictions_total"]
    assert after["hits_total"] > before["hits_total"]
    assert 0 < after["bytes"] <= after["max_bytes"]
