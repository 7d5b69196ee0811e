"""Evaluation tasks: a JSONL file of questions with their right answers, image files beside it.

Each line is an object::

    {"id": "7", "images": ["a.png"], "question": "What is written?", "answers": ["STOP"], "metric": "exact",
     "history": [["Is there a sign?", "Yes"]], "choices": [], "category": "ocr", "system": null, "max_tokens": 16,
     "max_tiles": null}

of which `id`, `images`, `question`, `answers` and `metric` are required. Images are files: relative names lie beneath
the JSONL's folder, absolute ones anywhere; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvlm_trt.errors import UserError, listed
from nvlm_trt.eval.normalize import normalize
from nvlm_trt.jsonl import FieldError, local_files, numbered_lines, parsed_line, sentence_of
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

CONTAINING: tuple[Metric, ...] = ("substring", "substring_formula", "open_answer")
"""Metrics that look for a right answer in what was said; every text contains the empty one."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question.

    Attributes:
        id: Tells it from the others of its task.
        images: Image files, in the order of their ``<image>`` placeholders.
        question: The user's message, as it is sent.
        history: Earlier questions and answers, oldest first.
        answers: Right answers; letters where there are choices. VQA accuracy counts equal ones.
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
    samples: dict[str, Sample] = {}
    faults: list[str] = []
    for number, line in numbered_lines(path, "the task"):
        where = f"{path.name}:{number}"
        try:
            sample = _sample(path.parent, _Line.model_validate(parsed_line(line)))
            check(sample, samples)
            samples[sample.id] = sample
        except ValidationError as error:
            faults += [f"{where}: {sentence_of(dict(fault), _Line.model_fields)}" for fault in error.errors()]
        except FieldError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise UserError(f"{len(faults)} faults in the task{listed(faults)}", fix="mend these lines")
    if not samples:
        raise UserError("the task is empty", seen=path, expected="a JSON object on each line")
    return tuple(samples.values())


def check(sample: Sample, earlier: Container[str] = ()) -> None:
    """Whether a sample can be asked, and its answer scored by its metric.

    Args:
        sample: From a JSONL file or a published data set.
        earlier: Ids of the samples before it.

    Raises:
        FieldError: naming the first field that is wrong, what was seen in it and what is expected.
    """
    _check_texts(sample)
    if sample.id in earlier:
        raise FieldError(f"id: seen {sample.id!r} a second time, expected one of its own")
    said = [sample.system or "", *(text for turn in sample.history for text in turn), sample.question]
    placeholders = sum(text.count(IMAGE_PLACEHOLDER) for text in said)
    if placeholders not in (0, len(sample.images)):
        seen = len(sample.images)
        raise FieldError(f"images: seen {seen}, expected {placeholders}, one for each {IMAGE_PLACEHOLDER}")
    _check_answers(sample)


def _check_texts(sample: Sample) -> None:
    fields: dict[str, Sequence[object]] = {
        "id": (sample.id,),
        "images": [str(image) for image in sample.images],
        "question": (sample.question,),
        "history": [text for turn in sample.history for text in turn],
        "answers": sample.answers,
        "choices": sample.choices,
        "category": (sample.category,),
        "system": () if sample.system is None else (sample.system,),
    }
    for field, values in fields.items():
        for value in values:
            if not isinstance(value, str) or (value == "" and field in ("id", "question")):
                raise FieldError(f"{field}: seen {value!r}, expected a text")
            if halves := [character for character in value if "\ud800" <= character <= "\udfff"]:
                raise FieldError(f"{field}: seen half a surrogate pair ({halves[0]!r}), expected whole characters")


def _check_answers(sample: Sample) -> None:
    metric, answers, choices = sample.metric, [*sample.answers], sample.choices
    if not answers:
        raise FieldError("answers: seen none, expected a right one")
    if len(choices) > (most := len(LETTERS) if metric in CHOOSING else 0):
        raise FieldError(f"choices: seen {len(choices)}, expected {f'at most {most}' if most else 'none'} for {metric}")
    if metric in ONE_ANSWER and len(answers) != 1:
        raise FieldError(f"answers: seen {len(answers)}, expected 1 for {metric}")
    letters = [*LETTERS[: len(choices)]]
    if metric == "multiple_choice" and not choices:
        raise FieldError(f"answers: seen {answers!r}, expected choices, and the letters of right ones")
    if choices and not {*answers} <= {*letters}:
        raise FieldError(f"answers: seen {answers!r}, expected letters of {', '.join(letters)}")
    if metric in CONTAINING and not all(answer.strip() for answer in answers):
        raise FieldError(f"answers: seen {answers!r}, expected none without a text: every answer contains that")
    if metric == "mathvista" and not choices and not normalize(answers[0]).replace("%", ""):
        raise FieldError(f"answers: seen {answers!r}, expected one of which normalising leaves something")


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    images: list[str]
    question: str
    history: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    answers: list[str]
    metric: Metric
    choices: list[str] = []
    category: str = ""
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=MAX_TILES)] | None = None


def _sample(folder: Path, line: _Line) -> Sample:
    return Sample(
        id=line.id,
        images=tuple(local_files(folder, line.images)),
        question=line.question,
        history=tuple((question, answer) for question, answer in line.history),
        answers=tuple(line.answers),
        metric=line.metric,
        choices=tuple(line.choices),
        category=line.category,
        system=line.system,
        max_tokens=line.max_tokens,
        max_tiles=line.max_tiles,
    )
