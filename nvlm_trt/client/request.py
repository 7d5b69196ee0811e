"""A request as tritonclient sends it; written once for the sync and the asyncio client."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL.ExifTags
import PIL.Image
from tritonclient.grpc import InferInput

from nvlm_trt.errors import ImageRejected, RequestError
from nvlm_trt.model.image import TURNS
from nvlm_trt.parsed import is_whole
from nvlm_trt.serving.fields import MAX_FP32, NVLM_FIELDS, Field

MODEL: Final = "nvlm"

Image = str | os.PathLike[str] | bytes | PIL.Image.Image
"""An image: the path of a file, a file's bytes, or a PIL image (sent as PNG)."""

Turn = tuple[str, str]

_INTEGERS: Final[dict[str, type[np.integer[Any]]]] = {"INT32": np.int32, "UINT64": np.uint64}


@dataclass(frozen=True, slots=True)
class Options:
    """How an answer is made; None leaves a value to the server.

    Attributes:
        max_tokens: Tokens of the answer at most.
        min_tokens: Tokens before the answer may end.
        temperature: 0 is greedy, as is naming none of temperature, top_k and top_p.
        top_k: Sample among the k best tokens.
        top_p: Sample among the best tokens of this probability.
        repetition_penalty: Above 1 discourages repetition.
        seed: Of the random numbers; the server draws one for each request that samples and names none.
        stop_words: Texts that end the answer and are no part of it.
        max_tiles: Tiles an image is cut into at most.
        exif_orientation: Whether images are turned upright.
        return_log_probs: Whether the answer tells its tokens and their log-probabilities.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_words: tuple[str, ...] = ()
    max_tiles: int | None = None
    exif_orientation: bool | None = None
    return_log_probs: bool | None = None


def build_inputs(
    prompt: str,
    *,
    images: Sequence[Image],
    history: Sequence[Turn],
    system: str | None,
    options: Options,
    stream: bool,
) -> list[InferInput]:
    """The tensors of a request.

    Raises:
        ImageRejected: an image cannot be read.
        RequestError: a value does not fit its field.
    """
    values: dict[str, Sequence[object]] = {"stream": [stream]}
    if history:
        values["messages"] = [_messages(prompt, history)]
    else:
        values["text_input"] = [prompt]
    if system is not None:
        values["system_message"] = [system]
    if images:
        values["image_bytes"] = [image_bytes(image) for image in images]
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None and value != ():
            values[field.name] = list(value) if isinstance(value, tuple) else [value]
    return [_input(field, values[field.name]) for field in NVLM_FIELDS if field.name in values]


def image_bytes(image: Image) -> bytes:
    """The file that is sent for an image.

    Raises:
        ImageRejected: the path cannot be read, or PNG has no such image.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, PIL.Image.Image):
        return _png(image)
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ImageRejected("an image cannot be read", seen=f"{image} ({error.strerror})") from None


def _png(image: PIL.Image.Image) -> bytes:
    """The pixels, and how they are turned upright; nothing else of the image is sent."""
    file, turned = io.BytesIO(), PIL.Image.Exif()
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
        if isinstance(orientation, int) and orientation in TURNS:
            turned[PIL.ExifTags.Base.Orientation] = orientation
        image.save(file, "PNG", exif=turned)
    except (OSError, ValueError, SyntaxError) as error:  # the last one for EXIF that is damaged
        seen = f"mode {image.mode} ({error})"
        raise ImageRejected("an image cannot be sent as PNG", seen=seen, fix="convert it to RGB") from None
    return file.getvalue()


def _messages(prompt: str, history: Sequence[Turn]) -> str:
    said = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    messages = [{"role": role, "content": text} for role, text in [*said, ("user", prompt)]]
    return json.dumps(messages, ensure_ascii=False)  # half a surrogate pair stays one, for `_array` to refuse


def _input(field: Field, values: Sequence[object]) -> InferInput:
    array = _array(field, values)
    tensor = InferInput(field.name, list(array.shape), field.dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def _array(field: Field, values: Sequence[object]) -> npt.NDArray[Any]:
    if field.dtype == "BYTES":
        if not all(is_whole(item) for item in values if isinstance(item, str)):
            fault = f"{field.name} holds half a surrogate pair, or bytes that are no UTF-8"
            raise RequestError(fault, expected="whole characters")
        return np.array([item.encode() if isinstance(item, str) else item for item in values], dtype=np.object_)
    if field.dtype == "BOOL" and all(isinstance(value, bool) for value in values):
        return np.array(values, dtype=np.bool_)
    if field.dtype == "FP32" and all(isinstance(value, int | float) and abs(value) <= MAX_FP32 for value in values):
        return np.array(values, dtype=np.float32)
    if field.dtype in _INTEGERS and all(_fits(_INTEGERS[field.dtype], value) for value in values):
        return np.array(values, dtype=_INTEGERS[field.dtype])
    raise RequestError(f"{field.name} does not fit its type", seen=values[0], expected=field.dtype)


def _fits(kind: type[np.integer[Any]], value: object) -> bool:
    """Whether an integer type holds a value; numpy 1 would wrap it around."""
    limits = np.iinfo(kind)
    return isinstance(value, int) and not isinstance(value, bool) and limits.min <= value <= limits.max
