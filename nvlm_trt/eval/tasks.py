"""Evaluation tasks: a JSONL file of questions with their right answers, image files beside it.

Each line is an object::

    {"id": "7", "images": ["a.png"], "question": "What is written?", "answers": ["STOP"], "metric": "exact",
     "history": [["Is there a sign?", "Yes"]], "choices": [], "category": "ocr", "system": null, "max_tokens": 16,
     "max_tiles": null}

of which `id`, `images`, `question`, `answers` and `metric` are required. Images are files: relative names lie beneath
the JSONL's folder, absolute ones anywhere; nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvlm_trt.errors import UserError, listed
from nvlm_trt.model.config import MAX_TILES
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER, Turn

Metric = Literal[
    "exact",
    "exact_match",
    "vqa_accuracy",
    "relaxed_accuracy",
    "anls",
    "substring",
    "substring_formula",
    "multiple_choice",
    "open_answer",
    "mathvista",
]
"""How an answer is scored, by the name of its class in nvlm_trt/eval/scoring.py."""

CHOOSING: tuple[Metric, ...] = ("multiple_choice", "mathvista")
"""Metrics that read choices; the first one cannot do without."""

ONE_ANSWER: tuple[Metric, ...] = ("exact_match", "relaxed_accuracy", "mathvista")
"""Metrics that the released evaluation defines for one right answer only."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question.

    Attributes:
        id: Tells it from the others of its task.
        images: Image files, in the order of their ``<image>`` placeholders.
        question: The user's message, as it is sent.
        history: Earlier questions and answers, oldest first.
        answers: Right answers; for `multiple_choice` letters of choices. VQA accuracy counts equal ones.
        metric: How an answer is scored.
        choices: Texts of the choices A, B, ... in order, where the question has any.
        category: Under which it is counted besides the whole; "" for none.
        system: The system message; None for the release's own.
        max_tokens: Tokens of an answer at most; None leaves it to the run.
        max_tiles: Tiles an image is cut into at most; None for the recipe's.
    """

    id: str
    images: tuple[Path, ...]
    question: str
    history: tuple[Turn, ...]
    answers: tuple[str, ...]
    metric: Metric
    choices: tuple[str, ...] = ()
    category: str = ""
    system: str | None = None
    max_tokens: int | None = None
    max_tiles: int | None = None


def read_tasks(path: Path) -> tuple[Sample, ...]:
    """The samples of a JSONL file; blank lines are skipped.

    Raises:
        UserError: the file cannot be read or holds no sample; or naming line, field, what was seen and what is
            expected, for every fault in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the task cannot be read ({error})", seen=path) from None
    samples: dict[str, Sample] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            sample = _sample(path.parent, _Line.model_validate(_parsed(line)))
            if sample.id in samples:
                raise _FieldError(f"id: seen {sample.id!r} a second time, expected one of its own")
            samples[sample.id] = sample
        except ValidationError as error:
            faults += [f"{where}: {_fault(dict(fault))}" for fault in error.errors()]
        except _FieldError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise UserError(f"{len(faults)} faults in the task{listed(faults)}", fix="mend these lines")
    if not samples:
        raise UserError("the task is empty", seen=path, expected="a JSON object on each line")
    return tuple(samples.values())


class _FieldError(Exception):
    """A field of a line and what is wrong with it."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1)]
    images: list[str]
    question: Annotated[str, Field(min_length=1)]
    history: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    answers: Annotated[list[str], Field(min_length=1)]
    metric: Metric
    choices: Annotated[list[str], Field(max_length=len(LETTERS))] = []
    category: str = ""
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=MAX_TILES)] | None = None


def _parsed(line: str) -> dict[str, object]:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _FieldError(f"seen no JSON ({error}), expected an object") from None
    if not isinstance(raw, dict):
        raise _FieldError(f"seen {type(raw).__name__}, expected an object")
    return raw


def _sample(folder: Path, line: _Line) -> Sample:
    _check_metric(line)
    turns = tuple((question, answer) for question, answer in line.history)
    said = [line.system or "", *(text for turn in turns for text in turn), line.question]
    placeholders = sum(text.count(IMAGE_PLACEHOLDER) for text in said)
    if placeholders not in (0, len(line.images)):
        raise _FieldError(f"images: seen {len(line.images)}, expected {placeholders}, one for each {IMAGE_PLACEHOLDER}")
    return Sample(
        id=line.id,
        images=tuple(_images(folder, line.images)),
        question=line.question,
        history=turns,
        answers=tuple(line.answers),
        metric=line.metric,
        choices=tuple(line.choices),
        category=line.category,
        system=line.system,
        max_tokens=line.max_tokens,
        max_tiles=line.max_tiles,
    )


def _check_metric(line: _Line) -> None:
    if line.metric == "multiple_choice":
        letters = LETTERS[: len(line.choices)]
        wrong = [answer for answer in line.answers if len(answer) != 1 or answer not in letters]
        if not letters or wrong:
            expected = f"letters of {', '.join(letters)}" if letters else "choices, and the letters of right ones"
            raise _FieldError(f"answers: seen {line.answers!r}, expected {expected}")
    elif line.metric in ONE_ANSWER and len(line.answers) != 1:
        raise _FieldError(f"answers: seen {len(line.answers)}, expected 1 for {line.metric}")
    if line.choices and line.metric not in CHOOSING:
        raise _FieldError(f"choices: seen {len(line.choices)}, expected none for {line.metric}")


def _images(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The files; relative ones must lie beneath the folder, by their names and where links lead."""
    root = folder.resolve()
    for index, name in enumerate(names):
        pure = PurePosixPath(name)
        if "://" in name or ".." in pure.parts or "\0" in name:
            raise _FieldError(f"images.{index}: seen {name!r}, expected a file beneath the JSONL's folder, or absolute")
        file = (root / pure).resolve()
        if not pure.is_absolute() and not file.is_relative_to(root):
            raise _FieldError(f"images.{index}: seen {name!r}, which leads out of the JSONL's folder")
        if not file.is_file():
            raise _FieldError(f"images.{index}: seen {name!r}, expected a file that exists")
        yield file


def _fault(fault: dict[str, object]) -> str:
    where = ".".join(str(part) for part in fault["loc"]) if isinstance(fault["loc"], tuple) else ""
    if fault["type"] == "missing":
        return f"{where}: seen nothing, expected a value"
    if fault["type"] == "extra_forbidden":
        return f"{where}: seen an unknown key, expected one of {', '.join(_Line.model_fields)}"
    return f"{where}: seen {str(fault['input'])[:80]!r}, expected otherwise: {fault['msg']}"
