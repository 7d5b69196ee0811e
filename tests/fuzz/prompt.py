"""What holds for any conversation: it is refused with 400, or its prompt is what it has to be.

The images stand where they were put, no special token is the user's, and there are as many tokens as were planned.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from PIL import Image
from pydantic import ValidationError
from pydantic_core import from_json

from nvlm_trt.errors import PromptError, UserError
from nvlm_trt.gateway.conversation import Conversation, conversation_of
from nvlm_trt.gateway.errors import ApiError, api_error
from nvlm_trt.gateway.plan import Planner
from nvlm_trt.gateway.schema import ChatRequest, ImagePart, TextPart
from nvlm_trt.miniature.shipped import FOLDER
from nvlm_trt.model.prompt import DEFAULT_SYSTEM, IMAGE_PLACEHOLDER, Prompt, build_prompt
from nvlm_trt.model.tiling import tile_tags
from nvlm_trt.model.tokenizer import END_OF_TURN, START_OF_TURN, VISION_PAD, NvlmTokenizer
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.serving.spec import ServingSpec

GRIDS: Final = ((1, 1), (2, 1), (1, 3), (2, 2), (3, 2))
"""Columns and rows of the images' tiles."""

MOST_IMAGES: Final = 8
ROLES: Final = ("user", "assistant", "system", "developer", "tool")
MESSAGE, PART = b"\x1e", b"\x1f"


@cache
def tokenizer() -> NvlmTokenizer:
    """The miniature's, which has every byte and every special token."""
    return NvlmTokenizer.load(FOLDER)


@cache
def planner() -> Planner:
    """What the gateway plans with."""
    recipe = parse_recipe({"name": "fuzz", "target": "cpu", "max_tiles": 6, "max_input_len": 4096}, "fuzz")
    return Planner(ServingSpec.of(FOLDER, recipe), tokenizer())


def check(data: bytes) -> None:
    """One input: JSON as a client sends it where it begins with a brace, else a conversation in separators.

    Raises:
        AssertionError: something does not hold.
    """
    asked = _from_json(data) if data[:1] == b"{" else {"model": "nvlm", "messages": list(_messages(data))}
    try:
        request = ChatRequest.model_validate(asked)
    except ValidationError:
        return
    try:
        said = conversation_of(request.messages)
        request.options()
    except (ApiError, UserError) as error:
        if api_error(error).status != 400:
            raise AssertionError("a refusal is not the client's fault") from error
        return
    check_places(request)
    if len(said.images) > MOST_IMAGES:
        return  # refused when they are read
    grids = [GRIDS[len(url) % len(GRIDS)] for url in said.images]
    tiles = [columns * rows + (columns * rows > 1) for columns, rows in grids]
    per_tile = planner().spec.tokens_per_tile
    # What conversation_of takes has a place for every image: nothing is left to be refused.
    prompt = build_prompt(tokenizer(), per_tile, said.question, tiles=tiles, history=said.history, system=said.system)
    check_prompt(prompt, said, tiles)
    check_plan(prompt, said, [picture(*grid) for grid in grids])


@cache
def picture(columns: int, rows: int) -> bytes:
    """A PNG that is cut into so many tiles."""
    side, out = planner().spec.tile_size, io.BytesIO()
    Image.new("L", (columns * side, rows * side)).save(out, "PNG")
    return out.getvalue()


def _from_json(data: bytes) -> Any:
    try:
        return from_json(data)
    except ValueError:
        return None


def _messages(data: bytes) -> Iterator[dict[str, Any]]:
    """Messages set apart by 0x1E, first their roles; parts set apart by 0x1F, images behind 0x01."""
    for message in data.split(MESSAGE):
        role, *parts = message[:1], *message[1:].split(PART)
        content = [_part(part) for part in parts]
        plain_text = len(content) == 1 and content[0]["type"] == "text" and len(message) % 2
        yield {
            "role": ROLES[role[0] % len(ROLES)] if role else "user",
            "content": content[0]["text"] if plain_text else content,
        }


def _part(part: bytes) -> dict[str, Any]:
    if part[:1] == b"\x01":
        return {"type": "image_url", "image_url": {"url": "data:" + "x" * (part[1] if len(part) > 1 else 0)}}
    return {"type": "text", "text": part.decode(errors="replace")}


def check_places(request: ChatRequest) -> None:
    """Where there are images, no message may name places for another number of them than its own.

    Raises:
        AssertionError: one does, and could take an image from elsewhere.
    """
    parts = [message.content for message in request.messages if not isinstance(message.content, str)]
    texts = [message.content for message in request.messages if isinstance(message.content, str)]
    if not any(isinstance(part, ImagePart) for content in parts for part in content):
        return
    assert not any(IMAGE_PLACEHOLDER in text for text in texts), "a text names a place and brings no image"
    for content in parts:
        images = sum(isinstance(part, ImagePart) for part in content)
        named = sum(part.text.count(IMAGE_PLACEHOLDER) for part in content if isinstance(part, TextPart))
        assert named in (0, images), f"{named} places are named for {images} images"


def check_prompt(prompt: Prompt, said: Conversation, tiles: Sequence[int]) -> None:
    """Compare a prompt with one that is put together otherwise.

    Raises:
        AssertionError: they differ.
    """
    words, ids, per_tile = tokenizer(), prompt.input_ids, planner().spec.tokens_per_tile
    specials = [words.decode([one], skip_special_tokens=False) for one in ids if one in words.special_ids]
    messages = [said.system if said.system is not None else DEFAULT_SYSTEM]
    messages += [text for turn in said.history for text in turn] + [said.question]
    wanted = Counter(
        {
            START_OF_TURN: len(messages) + 1,
            END_OF_TURN: 1 + sum(bool(text) for text in messages[1:]),
            VISION_PAD: sum(tiles) * per_tile,
        }
    )
    assert Counter(specials) == +wanted, f"special tokens {Counter(specials)}, expected {wanted}"
    assert prompt.num_visual_tokens == sum(tiles) * per_tile
    assert [place for place, one in enumerate(ids) if one == words.vision_pad_id] == list(prompt.visual_positions)
    assert prompt.text == expected_text(messages, tiles)
    assert words.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", prompt.text)
    rows = prompt.decoder_ids(10_000)[list(prompt.visual_positions)] - 10_000
    assert rows.tolist() == list(range(prompt.num_visual_tokens))


def check_plan(prompt: Prompt, said: Conversation, images: Sequence[bytes]) -> None:
    """Compare a prompt with what is planned for it from headers.

    Raises:
        AssertionError: they differ.
    """
    try:
        plan = planner().plan(said.question, images=images, history=said.history, system=said.system)
    except PromptError:
        assert len(prompt.input_ids) > planner().spec.max_input_len
        return
    assert plan.prompt_tokens == len(prompt.input_ids) <= planner().spec.max_input_len
    planned = [place for image in plan.images for first, end in image.ranges for place in range(first, end)]
    assert planned == list(prompt.visual_positions)


def expected_text(messages: Sequence[str], tiles: Sequence[int]) -> str:
    """The prompt's text, by replacing the first places of the finished template."""
    if tiles and not any(IMAGE_PLACEHOLDER in text for text in messages):
        messages = [*messages[:-1], f"{IMAGE_PLACEHOLDER}\n" * len(tiles) + messages[-1]]
    roles = ["system", *["user", "assistant"] * len(messages)][: len(messages)]
    turns = [
        f"<|im_start|>{role}\n{text}" + "<|im_end|>" * (bool(text) or role == "system")
        for role, text in zip(roles, messages, strict=True)
    ]
    whole = "".join(turns) + "<|im_start|>assistant\n"
    before, *after = whole.split(IMAGE_PLACEHOLDER)
    for number, text in enumerate(after):
        before += _image(tiles[number]) + text if number < len(tiles) else IMAGE_PLACEHOLDER + text
    return before


def _image(count: int) -> str:
    return (
        "<Image>" + "".join(tag + VISION_PAD * planner().spec.tokens_per_tile for tag in tile_tags(count)) + "</Image>"
    )


def as_json(messages: Sequence[dict[str, Any]], **others: Any) -> bytes:
    """An input in JSON."""
    return json.dumps({"model": "nvlm", "messages": list(messages), **others}).encode()
