"""What the model will see is told beforehand: grids, boxes, token ranges, limits. No model runs behind this door."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from nvlm_trt.gateway.fetch import Fetcher, Hold
from nvlm_trt.gateway.plan import Planner
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tokenizer import NvlmTokenizer

from ..tiny_engine import tiny_recipe
from .door import Door
from .upstream import Upstream

KEY = "a-key-of-this-test-alone"
THUMBNAIL = "<tile_global_thumbnail>"


@pytest.fixture(scope="module")
def engine_dir(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of an engine directory is read: recipe, configuration, tokenizer."""
    out = tmp_path_factory.mktemp("shown")
    (out / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe().model_dump(mode="json")))
    (out / "config.json").symlink_to(tiny_checkpoint / "config.json")
    (out / "tokenizer").symlink_to(tiny_checkpoint)
    return out


@pytest.fixture(scope="module")
def door(engine_dir: Path) -> Iterator[Door]:
    with Door(Limits(max_images=3, max_image=1 << 20), engine_dir=engine_dir) as one:
        yield one


def picture(width: int, height: int, *, orientation: int = 1) -> dict[str, Any]:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), "teal").save(file, "PNG", exif=exif)
    return part("image/png", file.getvalue())


def part(kind: str, file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(file).decode()}"}}


def user(*content: dict[str, Any] | str) -> dict[str, Any]:
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return {"role": "user", "content": parts}


class Slow(Fetcher):
    async def fetch(self, url: str, hold: Hold) -> bytes:
        await asyncio.sleep(60)
        return b""


@contextlib.contextmanager
def looking_for_long(door: Door) -> Iterator[None]:
    """While a request for tiles waits for its image."""
    message = user({"type": "image_url", "image_url": {"url": "http://a.example/x.png"}})
    body = json.dumps({"model": "nvlm", "messages": [message]}).encode()
    with door.connect() as held:
        held.sendall(b"POST /v1/tiles HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        while door.metric("nvlm_requests_waiting") != 1:
            continue
        yield


def look(door: Door, *messages: dict[str, Any], **fields: object) -> tuple[int, dict[str, Any]]:
    answer = door.call("/v1/tiles", json.dumps({"model": "nvlm", "messages": messages, **fields}))
    return answer.status, json.loads(answer.data)


def test_an_image_has_a_grid_and_every_tile_its_part_of_it(door: Door) -> None:
    status, seen = look(door, user("What is it?", picture(600, 400)))
    (image,) = seen["images"]
    assert (status, image["width"], image["height"]) == (200, 600, 400)
    assert (image["columns"], image["rows"], image["thumbnail"]) == (3, 2, True)
    assert [tile["tag"] for tile in image["tiles"]] == [*(f"<tile_{number}>" for number in range(1, 7)), THUMBNAIL]
    assert image["tiles"][4]["box"] == [200, 200, 400, 400]
    assert image["tiles"][-1]["box"] == [0, 0, 600, 400]


def test_token_ranges_are_where_the_prompt_has_the_visual_tokens(door: Door, engine_dir: Path) -> None:
    """Over turns, with images of several and of one tile."""
    first, second = picture(600, 400), picture(60, 60)
    _, seen = look(door, user(first, "What is it?"), {"role": "assistant", "content": "A cat."}, user(second, "And?"))
    tokenizer = NvlmTokenizer.load(engine_dir / "tokenizer")
    history = [("<image>\nWhat is it?", "A cat.")]
    prompt = build_prompt(tokenizer, 16, "<image>\nAnd?", tiles=[7, 1], history=history)
    ranges = [tile["tokens"] for image in seen["images"] for tile in image["tiles"]]
    assert [place for first, end in ranges for place in range(first, end)] == list(prompt.visual_positions)
    assert len(ranges) == 8
    assert (seen["prompt_tokens"], seen["tokens_per_tile"]) == (len(prompt.input_ids), 16)


def test_fields_of_the_request_count(door: Door) -> None:
    lying = user(picture(400, 600, orientation=6), "x")
    assert [look(door, lying)[1]["images"][0][side] for side in ("width", "height")] == [600, 400]
    _, seen = look(door, lying, exif_orientation=False, max_tiles=1, max_tokens=7)
    assert [seen["images"][0][name] for name in ("width", "height", "columns", "rows")] == [400, 600, 1, 1]
    assert (seen["answer_tokens"], len(seen["images"][0]["tiles"])) == (7, 1)


def test_a_conversation_without_images_has_a_length_too(door: Door) -> None:
    _, seen = look(door, user("Hello"))
    assert (seen["images"], seen["answer_tokens"], seen["max_context_tokens"]) == ([], 400, 912)
    assert 0 < seen["prompt_tokens"] < look(door, user("Hello, hello, hello"))[1]["prompt_tokens"]


@pytest.mark.parametrize(
    ("message", "fields", "status", "code"),
    [
        (user("x"), {"model": "gpt-4o"}, 404, "model_not_found"),
        (user("x"), {"max_tiles": 7}, 400, None),
        (user("x"), {"max_tile": 1}, 400, "unknown_parameter"),
        (user(*[picture(9, 9)] * 4), {}, 400, "too_many_images"),
        (user(part("image/png", b"no image")), {}, 400, "invalid_image"),
        (user(part("image/png", bytes(1 << 21))), {}, 400, "invalid_image"),
        (user("long " * 2000), {}, 400, "context_length_exceeded"),
    ],
)
def test_what_the_chat_refuses_is_refused_alike(
    door: Door, message: dict[str, Any], fields: dict[str, object], status: int, code: str | None
) -> None:
    seen, answer = look(door, message, **fields)
    assert (seen, answer["error"]["code"]) == (status, code)


def test_limits_are_those_that_are_kept(door: Door, engine_dir: Path) -> None:
    told = json.loads(door.call("/v1/limits").data)
    spec = Planner.of(engine_dir, tiny_recipe()).spec
    assert (told["model"], told["max_images"], told["max_image_bytes"]) == ("mini", 3, 1 << 20)
    assert told["max_image_pixels"] == spec.max_image_pixels
    assert (told["tile_size"], told["tokens_per_tile"]) == (112, 16)
    assert (told["max_prompt_tokens"], told["max_answer_tokens"], told["max_context_tokens"]) == (512, 400, 912)
    assert {"JPEG", "PNG"} <= set(told["image_formats"])


def test_with_keys_the_page_is_open_and_nothing_that_it_asks_for(engine_dir: Path) -> None:
    with Door(Limits(), api_keys=(KEY,), engine_dir=engine_dir) as door:
        assert [door.call(path).status for path in ("/", "/page/style.css")] == [200, 200]
        assert [door.call("/v1/limits").status, look(door, user("x"))[0]] == [401, 401]
        assert door.call("/v1/limits", headers={"Authorization": f"Bearer {KEY}"}).status == 200


def test_looking_takes_a_place_and_counts_for_the_rate(engine_dir: Path) -> None:
    with Door(Limits(key_per_minute=1), engine_dir=engine_dir) as door:
        assert [look(door, user("x"))[0] for _ in range(2)] == [200, 429]
    limits = Limits(max_concurrent=1, max_queue=0, fetch_time=60)
    with Door(limits, engine_dir=engine_dir, fetcher=Slow((), 0)) as door, looking_for_long(door):
        assert look(door, user("x"))[0] == 503


def test_nobody_is_thought_to_wait_for_who_only_looks(engine_dir: Path, upstream: Upstream) -> None:
    limits = Limits(max_concurrent=1, fetch_time=60)
    with Door(limits, engine_dir=engine_dir, fetcher=Slow((), 0), http=upstream.port) as door:
        assert door.call("/v2/models/nvlm/generate", b'{"text_input": "short"}').status == 202
        assert door.metric("nvlm_planned_tokens_rate") > 0
        with looking_for_long(door):
            assert door.metric("nvlm_expected_wait_seconds") == 0


def test_the_openapi_document_describes_it(door: Door) -> None:
    paths = json.loads(door.call("/openapi.json").data)["paths"]
    assert {"/v1/tiles", "/v1/limits"} <= paths.keys()
    assert not any(path == "/" or path.startswith("/page") for path in paths)
