"""One line of a batch, as it is given and as it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from nvlm_trt.client.request import Image, Options, Turn
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.errors import RequestError
from nvlm_trt.jsonl import FieldError, local_files, sentence_of
from nvlm_trt.model.config import MAX_TILES
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER
from nvlm_trt.serving.requests import parse_messages


def _encodable(text: str) -> str:
    """Refuse half a character, which JSON can write as an escape and no request can carry."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half a character")
    return text


Text = Annotated[str, AfterValidator(_encodable)]


def _id(value: object) -> str | int:
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("a text or a whole number")


def _image(value: object) -> str | bytes:
    if isinstance(value, str | bytes):
        return value
    raise ValueError("the path of a file")


Id = str | int
"""Tells a request from the others of its batch: a text, or a whole number; 1 and "1" are the same one."""

_LONGEST = 2**31 - 1
"""Tokens of an answer that no engine's limit is below; the engine's own is known to its server alone."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One question of a batch.

    Attributes:
        id: Its own, or the number of its line.
        prompt: The question; ``<image>`` marks the place of an image.
        images: Files, or files' bytes, in the order of their marks.
        history: Earlier questions and answers, oldest first.
        system: The system message; None for the release's own.
        options: How the answer is made.
    """

    id: Id
    prompt: str
    images: tuple[Image, ...] = ()
    history: tuple[Turn, ...] = ()
    system: str | None = None
    options: Options = field(default_factory=Options)

    @property
    def key(self) -> str:
        """The id as a text."""
        return str(self.id)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[Id, PlainValidator(_id)] | None = None
    prompt: Text | None = None
    messages: list[dict[str, Any]] | None = None
    images: list[Annotated[str | bytes, PlainValidator(_image)]] = []
    system_message: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=_LONGEST)
    min_tokens: int | None = Field(None, ge=0, le=_LONGEST)
    temperature: float | None = None
    top_k: int | None = Field(None, ge=0, le=_LONGEST)
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_words: list[Text] = []
    max_tiles: int | None = Field(None, ge=1, le=MAX_TILES)
    exif_orientation: bool | None = None


def parse_request(raw: Mapping[str, object], number: int, folder: Path, *, images_exist: bool = True) -> BatchRequest:
    """Check all of a line that can be checked without its server.

    Args:
        raw: Its object.
        number: The id of a line that has none.
        folder: Under which relative image files lie.
        images_exist: Whether an image file that is not there is a fault.

    Raises:
        FieldError: naming the fields that are wrong, what was seen in them and what is expected.
    """
    try:
        line = _Line.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise FieldError("; ".join(sentence_of(dict(fault), _Line.model_fields) for fault in faults)) from None
    prompt, history, system = _said(line)
    request = BatchRequest(
        id=number if line.id is None else line.id,
        prompt=prompt,
        images=tuple(_images(folder, line.images, must_exist=images_exist)),
        history=history,
        system=system,
        options=Options(
            max_tokens=line.max_tokens,
            min_tokens=line.min_tokens,
            temperature=line.temperature,
            top_k=line.top_k,
            top_p=line.top_p,
            repetition_penalty=line.repetition_penalty,
            seed=line.seed,
            stop_words=tuple(line.stop_words),
            max_tiles=line.max_tiles,
            exif_orientation=line.exif_orientation,
        ),
    )
    _check_options(request.options)
    _check_places(request)
    return request


def _said(line: _Line) -> tuple[str, tuple[Turn, ...], str | None]:
    """The question, what was said before, and the system message."""
    if (line.prompt is None) == (line.messages is None):
        seen = "neither" if line.prompt is None else "both"
        raise FieldError(f"prompt: seen {seen} of prompt and messages, expected one of them")
    if line.prompt is not None:
        return line.prompt, (), line.system_message
    try:
        said = parse_messages(json.dumps(line.messages))
    except RequestError as error:
        raise FieldError(f"messages: {error}") from None
    if said.system is not None and line.system_message is not None:
        raise FieldError("system_message: seen one besides the role system of messages, expected one of them")
    return said.question, said.history, line.system_message if said.system is None else said.system


def _images(folder: Path, images: Sequence[str | bytes], *, must_exist: bool) -> Iterator[Image]:
    """Files where paths are given; bytes, which JSON cannot hold and a table can, as they are."""
    files = local_files(folder, [image for image in images if isinstance(image, str)], must_exist=must_exist)
    for image in images:
        yield next(files) if isinstance(image, str) else image


def _check_options(options: Options) -> None:
    """Ranges that hold for every engine."""
    try:
        SamplingParams(
            max_tokens=_LONGEST if options.max_tokens is None else options.max_tokens,
            min_tokens=options.min_tokens or 0,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=1.0 if options.repetition_penalty is None else options.repetition_penalty,
            seed=options.seed,
            stop=options.stop_words,
        )
    except RequestError as error:
        raise FieldError(str(error)) from None


def _check_places(request: BatchRequest) -> None:
    said = [request.system or "", *(text for turn in request.history for text in turn), request.prompt]
    places = sum(text.count(IMAGE_PLACEHOLDER) for text in said)
    if places and len(request.images) > places:
        raise FieldError(f"images: seen {len(request.images)}, expected {places}, one for each {IMAGE_PLACEHOLDER}")
