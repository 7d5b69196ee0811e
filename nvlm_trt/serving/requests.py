"""From the tensors of a request to a checked question. No tensor is trusted: Triton checks types, not values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt

from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.errors import RequestError
from nvlm_trt.parsed import is_whole
from nvlm_trt.serving.images import image_file
from nvlm_trt.serving.spec import ServingSpec

Tensors = Mapping[str, npt.NDArray[Any]]
"""The tensors that a request brings, by name; absent ones are not there."""

Value = TypeVar("Value", int, float, bool)

MESSAGE_KEYS = {"role", "content"}
ROLES = ("system", "user", "assistant")
MAX_TEXT_BYTES = 4 * 1024 * 1024
"""Longest text: no engine's prompt holds a tenth of it, and tokenising more would hold up others."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question with what was said before."""

    question: str
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A checked request.

    Attributes:
        conversation: What was asked.
        images: Image files, in the order of the placeholders.
        max_tiles: Tiles that an image is cut into at most.
        exif_orientation: Whether images are turned upright.
        sampling: How tokens are chosen; stop ids and texts are not set here.
        stream: Whether the answer is wanted in pieces.
    """

    conversation: Conversation
    images: tuple[bytes, ...]
    max_tiles: int
    exif_orientation: bool
    sampling: SamplingParams
    stream: bool


def parse_question(tensors: Tensors, spec: ServingSpec) -> Question:
    """Check the fields of a request against the engine's limits.

    Raises:
        RequestError: naming the first field that is missing, of the wrong kind or out of range.
        ImageRejected: an image field is no image file at all.
    """
    return Question(
        conversation=_conversation(tensors),
        images=_images(tensors, spec),
        max_tiles=_max_tiles(tensors, spec),
        exif_orientation=one_value(tensors, "exif_orientation", bool, spec.exif_orientation),
        sampling=parse_sampling(tensors, spec),
        stream=one_value(tensors, "stream", bool, False),
    )


def parse_sampling(tensors: Tensors, spec: ServingSpec) -> SamplingParams:
    """Check the sampling fields.

    Raises:
        RequestError: naming the field, its value and its range.
    """
    max_tokens = one_value(tensors, "max_tokens", int, spec.default_max_tokens)
    spec.check_max_tokens(max_tokens)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=one_value(tensors, "min_tokens", int, 0),
        temperature=one_value(tensors, "temperature", float, 0.0) if "temperature" in tensors else None,
        top_k=one_value(tensors, "top_k", int, 0),
        top_p=one_value(tensors, "top_p", float, 0.0),
        repetition_penalty=one_value(tensors, "repetition_penalty", float, 1.0),
        seed=one_value(tensors, "seed", int, 0) if "seed" in tensors else None,
    )


def parse_stop_words(tensors: Tensors) -> tuple[str, ...]:
    """The stop texts of a request.

    Raises:
        RequestError: they are too many, one is empty or is no UTF-8 text.
    """
    words = tuple(_text(item, "stop_words") for item in _items(tensors, "stop_words"))
    return SamplingParams(max_tokens=1, stop=words).stop


def parse_flag(tensors: Tensors, name: str) -> bool:
    """A yes-or-no field; absent is no.

    Raises:
        RequestError: it does not hold exactly one value.
    """
    return one_value(tensors, name, bool, False)


def one_value(tensors: Tensors, name: str, kind: Callable[[Any], Value], default: Value) -> Value:
    """A field that holds one value; absent it is `default`.

    Raises:
        RequestError: it does not hold exactly one value.
    """
    values = tensors.get(name)
    if values is None:
        return default
    if values.size != 1:
        raise RequestError(f"{name} does not hold one value", seen=f"{values.size} values", expected="1 value")
    return kind(values.reshape(-1)[0])


def _items(tensors: Tensors, name: str) -> list[bytes]:
    values = tensors.get(name)
    if values is None:
        return []
    return [item if isinstance(item, bytes) else str(item).encode() for item in values.reshape(-1).tolist()]


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise RequestError(f"{name} is too long", seen=f"{len(data)} bytes", expected=f"at most {MAX_TEXT_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not UTF-8 text", fix="encode it as UTF-8") from None


def _optional_text(tensors: Tensors, name: str) -> str | None:
    items = _items(tensors, name)
    if name in tensors and len(items) != 1:
        raise RequestError(f"{name} does not hold one text", seen=f"{len(items)} texts", expected="1 text")
    return _text(items[0], name) if items else None


def _conversation(tensors: Tensors) -> Conversation:
    text, messages = _optional_text(tensors, "text_input"), _optional_text(tensors, "messages")
    system = _optional_text(tensors, "system_message")
    if text is None and messages is None:
        raise RequestError("text_input is missing", fix="give text_input, or messages for a conversation")
    if messages is None:
        return Conversation(text or "", system=system)
    if text is not None:
        raise RequestError("text_input and messages were both given", fix="give one of them")
    conversation = parse_messages(messages)
    if system is None:
        return conversation
    if conversation.system is not None:
        raise RequestError("there are two system messages", fix="give system_message or the role system, not both")
    return Conversation(conversation.question, conversation.history, system)


def parse_messages(text: str) -> Conversation:
    """A conversation from JSON: ``[{"role": "user", "content": "..."}, ...]``, an optional system message first.

    Raises:
        RequestError: it is no JSON, a message has another shape, or the roles do not alternate up to a question.
    """
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("messages is not JSON", expected='[{"role": "user", "content": "..."}]') from None
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is not a list of messages", expected='[{"role": "user", "content": "..."}]')
    said = [_message(message, place) for place, message in enumerate(messages)]
    system = said.pop(0)[1] if said[0][0] == "system" else None
    for place, (role, _) in enumerate(said):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            raise RequestError("the roles of messages do not alternate", seen=role, expected=expected)
    if len(said) % 2 == 0:
        raise RequestError("messages does not end with a question", fix="let the last message be the user's")
    texts = [content for _, content in said]
    return Conversation(texts[-1], tuple(zip(texts[:-1:2], texts[1:-1:2], strict=True)), system)


def _message(message: object, place: int) -> tuple[str, str]:
    if not isinstance(message, dict) or message.keys() != MESSAGE_KEYS:
        raise RequestError(f"message {place} has another shape", expected='{"role": "...", "content": "..."}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise RequestError(f"message {place} has an unknown role", seen=str(role)[:32], expected=", ".join(ROLES))
    if not isinstance(content, str):
        raise RequestError(f"the content of message {place} is no text", fix="send images as image_bytes")
    if not is_whole(content):
        raise RequestError(f"the content of message {place} holds half a surrogate pair", expected="whole characters")
    return role, content


def _images(tensors: Tensors, spec: ServingSpec) -> tuple[bytes, ...]:
    items = _items(tensors, "image_bytes")
    if len(items) > spec.max_images:
        raise RequestError("there are too many images", seen=len(items), expected=f"at most {spec.max_images}")
    return tuple(image_file(item, spec.max_image_bytes) for item in items)


def _max_tiles(tensors: Tensors, spec: ServingSpec) -> int:
    max_tiles = one_value(tensors, "max_tiles", int, spec.max_tiles)
    if not 1 <= max_tiles <= spec.max_tiles:
        raise RequestError("max_tiles is out of range", seen=max_tiles, expected=f"1 to {spec.max_tiles}")
    return max_tiles
