"""Bad input answers with a 4xx and one clear sentence, and harms nobody else."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import zlib

import psutil
import pytest
from PIL import Image

from nvlm_trt.client import Options
from nvlm_trt.errors import RequestError


def file_of(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def huge_png() -> bytes:
    """A PNG of a few kB that claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(2_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_images() -> dict[str, bytes]:
    red = Image.new("RGB", (64, 48), "red")
    return {
        "no image": b"this is no image at all",
        "truncated": file_of(Image.effect_noise((200, 200), 50).convert("RGB"), "PNG")[:5000],
        "empty": b"",
        "huge": huge_png(),
        "animated": file_of(red, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")]),
        "cmyk": file_of(Image.new("CMYK", (64, 48)), "JPEG"),
        "sixteen bits": file_of(Image.new("I;16", (64, 48)), "PNG"),
        "one pixel": file_of(Image.new("RGB", (1, 1)), "PNG"),
    }


IMAGES = bad_images()

FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "no question": ({"max_tokens": 5}, "text_input is missing"),
    "unknown field": ({"text_input": "x", "max_token": 5}, "did you mean max_tokens?"),
    "question and messages": ({"text_input": "x", "messages": "[]"}, "give one of them"),
    "messages no JSON": ({"messages": "hello"}, "messages is not JSON"),
    "messages of another shape": ({"messages": '[{"role": "user"}]'}, "message 0 has another shape"),
    "a robot's message": ({"messages": '[{"role": "robot", "content": "x"}]'}, "unknown role"),
    "last message the assistant's": (
        {"messages": json.dumps([{"role": r, "content": "x"} for r in ("user", "assistant")])},
        "does not end with a question",
    ),
    "zero tokens": ({"text_input": "x", "max_tokens": 0}, "max_tokens is out of range"),
    "too many tokens": ({"text_input": "x", "max_tokens": 100_000}, "max_tokens is beyond the engine"),
    "NaN temperature": ({"text_input": "x", "temperature": float("nan")}, "temperature is not a finite number"),
    "infinite temperature": ({"text_input": "x", "temperature": float("inf")}, "temperature is not a finite number"),
    "negative top_k": ({"text_input": "x", "top_k": -1}, "top_k is out of range"),
    "top_p above 1": ({"text_input": "x", "top_p": 1.5}, "top_p is out of range"),
    "no tiles": ({"text_input": "x", "max_tiles": 0}, "max_tiles is out of range"),
    "empty stop text": ({"text_input": "x", "stop_words": [""]}, "stop"),
    "long prompt": ({"text_input": "long " * 2000}, "the prompt is longer than the engine"),
}


def assert_clear(message: object) -> None:
    """One sentence, without a trace, a path, an address or the name of a type."""
    text = str(message)
    assert 10 < len(text) < 400
    assert "\n" not in text
    for leak in ("Traceback", ".py", "/work", "/tmp", "/home", "0x", "object at", "<class", "PIL."):
        assert leak not in text


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused(post, client, name):
    body = {"text_input": "What is this?", "image_bytes": [base64.b64encode(IMAGES[name]).decode()], "max_tokens": 5}
    answer = post("models/nvlm/generate", body)
    assert answer.status == 400
    assert "image 1 of 1" in str(answer.json["error"])
    assert_clear(answer.json["error"])
    with pytest.raises(RequestError, match="image 1 of 1") as refusal:
        client.generate("What is this?", images=[IMAGES[name]], options=Options(max_tokens=5))
    assert_clear(refusal.value)


def test_a_huge_image_is_refused_from_its_header(client, server):
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
    before = sum(process.memory_info().rss for process in processes)
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(RequestError, match="too many pixels"):
            client.generate("x", images=[IMAGES["huge"]])
    assert time.monotonic() - began < 20  # decoding it would take as long for each, and fill the memory
    assert sum(process.memory_info().rss for process in processes) - before < 64 << 20


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_field_is_refused(post, name):
    body, message = FIELDS[name]
    answer = post("models/nvlm/generate", body)
    assert answer.status == 400
    assert message in str(answer.json["error"])
    assert_clear(answer.json["error"])


@pytest.mark.parametrize("name", ["no question", "unknown field", "NaN temperature", "long prompt"])
def test_the_ensemble_refuses_it_too(post, name):
    body, message = FIELDS[name]
    answer = post("models/ensemble/generate", body)
    assert answer.status == 400
    assert message in str(answer.json["error"])


def test_more_images_than_placeholders_are_refused(client, jpeg):
    pair = [jpeg("chelsea"), jpeg("rocket")]
    with pytest.raises(RequestError, match="2 images, 1 placeholders"):
        client.generate("Only <image> here", images=pair)


def test_more_images_than_the_limit_are_refused(client, jpeg):
    with pytest.raises(RequestError, match="too many images"):
        client.generate("x", images=[jpeg("chelsea")] * 4)


@pytest.mark.parametrize("body", [b'{"text_input": "x", "max_tokens": "many"}', b'{"text_input": 5}', b'{"text'])
def test_json_of_the_wrong_type_is_refused(post, body):
    answer = post("models/nvlm/generate", body)
    assert answer.status == 400
    assert_clear(answer.json["error"])


def test_bad_requests_leave_the_server_well(client):
    assert client.generate("Hello", options=Options(max_tokens=4)).num_output_tokens == 4
