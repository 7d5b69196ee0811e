"""Calibration samples: a JSONL file of questions or conversations, with image files beside it.

Each line is an object with `text` (one question) or `messages` (a conversation of `{"role", "content"}`, roles system,
user and assistant as usual), and optionally `images`: names of files beneath the JSONL's folder, one for each
``<image>`` in the texts, or for texts without any, put in front of the last question as the released chat() does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nvlm_trt.errors import UserError, listed
from nvlm_trt.jsonl import FieldError, local_files, numbered_lines, parsed_line
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER, Turn

SHIPPED_SAMPLES = Path(__file__).parent / "data" / "samples.jsonl"
"""The project's own set: texts in several languages, code, tables, photographs and drawn documents."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation.

    Attributes:
        where: File and line, for messages to a person.
        system: The system message; None for the release's own.
        history: Earlier questions and answers, oldest first.
        question: The last question.
        answer: What was answered to it; None leaves it open.
        images: Image files, in the order of their placeholders.
    """

    where: str
    system: str | None
    history: tuple[Turn, ...]
    question: str
    answer: str | None
    images: tuple[Path, ...]


def read_samples(path: Path, count: int | None = None) -> list[Sample]:
    """The samples of a JSONL file; blank lines are skipped.

    Args:
        path: The file.
        count: How many to read, from the first one on; None for all.

    Raises:
        UserError: the file cannot be read or has no sample, or naming line and field of every fault in it.
    """
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in numbered_lines(path, "the calibration samples"):
        if len(samples) == count:
            break
        where = f"{path.name} line {number}"
        try:
            samples.append(_sample(where, path.parent, _Line.model_validate(parsed_line(line))))
        except ValidationError as error:
            faults += [f"{where}: {_fault(dict(fault))}" for fault in error.errors()]
        except FieldError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise UserError(f"{len(faults)} faults in the calibration samples{listed(faults)}")
    if not samples:
        raise UserError("there are no calibration samples", seen=path, expected="a JSON object on each line")
    return samples


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    images: list[str] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("there must be text or messages, and not both")
        said = self.dialogue
        for place, message in enumerate(said):
            expected = ("user", "assistant")[place % 2]
            if message.role != expected:
                raise ValueError(f"messages: seen role {message.role}, expected {expected} at place {place}")
        if not said:
            raise ValueError("messages: there is no question")
        placeholders = sum(message.content.count(IMAGE_PLACEHOLDER) for message in self.everything)
        if placeholders not in (0, len(self.images)) or (placeholders and not self.images):
            raise ValueError(
                f"images: seen {len(self.images)} of them and {placeholders} {IMAGE_PLACEHOLDER} in the texts"
            )
        return self

    @property
    def everything(self) -> Sequence[_Message]:
        """All messages."""
        return self.messages or [_Message(role="user", content=self.text or "")]

    @property
    def dialogue(self) -> Sequence[_Message]:
        """The messages without a system message in front."""
        return self.everything[1:] if self.everything[0].role == "system" else self.everything


def _sample(where: str, folder: Path, line: _Line) -> Sample:
    texts = [message.content for message in line.dialogue]
    answer = texts.pop() if len(texts) % 2 == 0 else None
    return Sample(
        where=where,
        system=line.everything[0].content if line.everything[0].role == "system" else None,
        history=tuple(zip(texts[:-1:2], texts[1::2], strict=True)),
        question=texts[-1],
        answer=answer,
        images=tuple(_images(folder, line.images)),
    )


def _images(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The files, all beneath the folder, so that a set can be moved."""
    for index, name in enumerate(names):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "://" in name:
            raise FieldError(f"images.{index}: seen {name!r}, expected a file name relative to the JSONL's folder")
    return local_files(folder, names)


def _fault(fault: dict[str, object]) -> str:
    where = ".".join(str(part) for part in fault["loc"]) if isinstance(fault["loc"], tuple) else ""
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}, seen: {str(fault['input'])[:80]!r}" if where else message
