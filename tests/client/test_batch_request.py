"""What a line of a batch may say, and how it is refused."""

from __future__ import annotations

import pytest

from nvlm_trt.client.batch_request import parse_request
from nvlm_trt.client.request import Options
from nvlm_trt.jsonl import FieldError


@pytest.fixture
def folder(tmp_path):
    """A folder with one image in it and one above it."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    (folder / "link.png").symlink_to(tmp_path / "b.png")
    return folder


def test_a_prompt_alone_is_a_request_with_the_number_of_its_line(folder):
    request = parse_request({"prompt": "Why?"}, 7, folder)
    assert (request.id, request.key, request.prompt) == (7, "7", "Why?")
    assert (request.images, request.history, request.system) == ((), (), None)
    assert request.options == Options()


def test_every_field_has_its_place(folder):
    options = {
        "max_tokens": 9,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "seed": 2**64 - 1,
        "max_tiles": 6,
        "exif_orientation": False,
    }
    raw = {"id": "a", "prompt": "<image> Why?", "images": ["a.png"], "system_message": "Be brief.", **options}
    request = parse_request(raw | {"stop_words": [".", "!"]}, 1, folder)
    assert request.id == "a"
    assert request.images == (folder / "a.png",)
    assert request.system == "Be brief."
    assert request.options == Options(**options, stop_words=(".", "!"))


def test_messages_are_a_conversation(folder):
    said = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C")]
    messages = [{"role": role, "content": text} for role, text in said]
    request = parse_request({"messages": messages}, 1, folder)
    assert (request.system, request.history, request.prompt) == ("S", (("A", "B"),), "C")


def test_one_mark_more_than_images_stays_text_as_on_the_server(folder):
    assert parse_request({"prompt": "<image> <image>", "images": ["a.png"]}, 1, folder).images


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "prompt: seen neither of prompt and messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt: seen both"),
        ({"prompt": "a", "max_token": 3}, "max_token: seen an unknown key, expected one of id, prompt"),
        ({"prompt": "a", "id": 1.5}, "id: seen '1.5', expected otherwise: Value error, a text or a whole number"),
        ({"prompt": "a", "id": True}, "id: seen 'True'"),
        ({"prompt": "a", "images": [1]}, "images.0: seen '1', expected otherwise: Value error, the path of a file"),
        ({"prompt": 3}, "prompt: seen '3'"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"id": "\udfff", "prompt": "a"}, "half a character"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages: "),
        ({"prompt": "a", "max_tokens": "3"}, "max_tokens: seen '3'"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: seen '0'"),
        ({"prompt": "a", "max_tokens": 2**31}, "max_tokens: "),
        ({"prompt": "a", "max_tokens": 2, "min_tokens": 3}, "min_tokens is out of range"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature is out of range"),
        ({"prompt": "a", "top_p": 1.5}, "top_p is out of range"),
        ({"prompt": "a", "seed": -1}, "seed is out of range"),
        ({"prompt": "a", "seed": 2**64}, "seed is out of range"),
        ({"prompt": "a", "stop_words": [""]}, "stop is out of range"),
        ({"prompt": "a", "max_tiles": 13}, "max_tiles: seen '13'"),
        ({"prompt": "a", "images": "a.png"}, "images: seen 'a.png'"),
        ({"prompt": "a", "images": ["none.png"]}, "images.0: seen 'none.png', expected a file that exists"),
        ({"prompt": "a", "images": ["../b.png"]}, "images.0: seen '../b.png'"),
        ({"prompt": "a", "images": ["link.png"]}, "leads out of the JSONL's folder"),
        ({"prompt": "a", "images": ["a.png", "https://host/b.png"]}, "images.1: seen 'https://host/b.png'"),
        ({"prompt": "<image>", "images": ["a.png", "a.png"]}, "images: seen 2, expected 1"),
        ({"messages": []}, "messages: messages is not a list of messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages: the roles of messages do not alternate"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages: the content of message 0 is no text"),
        (
            {"system_message": "T", "messages": [{"role": r, "content": "S"} for r in ("system", "user")]},
            "system_message: seen one besides",
        ),
    ],
)
def test_what_no_server_would_take_is_refused_by_its_field(folder, raw, said):
    with pytest.raises(FieldError) as refused:
        parse_request(raw, 1, folder)
    assert said in str(refused.value)
