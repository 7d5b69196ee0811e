"""What the verbs that take a question share: images by path and the history file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.errors import ImageRejected, PromptError
from nvlm_trt.parsed import json_value

if TYPE_CHECKING:
    from PIL.Image import Image

    from nvlm_trt.model.image import ImageLimits
    from nvlm_trt.model.prompt import Turn


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that the user named.

    Raises:
        ImageRejected: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageRejected("an image cannot be read", seen=f"{path} ({error.strerror})") from None


def open_image(path: Path, limits: ImageLimits | None = None, *, exif_orientation: bool = True) -> Image:
    """Decode an image file within the limits (the defaults if None) to RGB.

    Raises:
        ImageRejected: it cannot be read, is no image, or is beyond the limits; the message names the file.
    """
    from nvlm_trt.model.image import ImageLimits, read_image

    try:
        return read_image(read_bytes(path), limits or ImageLimits(), exif_orientation=exif_orientation)
    except ImageRejected as error:
        raise error.named(path) from None


def read_history(path: Path | None) -> list[Turn]:
    """Earlier turns from a JSON file: ``[[question, answer], ...]`` or ``[{"role": "user", "content": ...}, ...]``.

    Raises:
        PromptError: the file cannot be read or has another shape.
    """
    if path is None:
        return []
    try:
        raw = json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"the history cannot be read ({error})", seen=path) from None
    if not isinstance(raw, list):
        raise _shape_error(raw)
    if raw and all(isinstance(item, dict) for item in raw):
        return _turns_of_messages(raw)
    for item in raw:
        if not (isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)):
            raise _shape_error(item)
    return [(question, answer) for question, answer in raw]


def _turns_of_messages(messages: Sequence[dict[str, object]]) -> list[Turn]:
    """Pair up messages, which must alternate between user and assistant and end with the assistant."""
    texts: list[str] = []
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        expected = ("user", "assistant")[index % 2]
        if role != expected or not isinstance(content, str) or message.keys() != {"role", "content"}:
            raise _shape_error(message, f'{{"role": "{expected}", "content": text}} at place {index}')
        texts.append(content)
    if len(texts) % 2:
        raise PromptError("the history ends with a question", fix="give the new question as --prompt")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _shape_error(seen: object, expected: str = "[[question, answer], ...] of texts, or messages") -> PromptError:
    return PromptError("the history has another shape", seen=json.dumps(seen)[:80], expected=expected)
