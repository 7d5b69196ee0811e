"""Multiple choice and mixed questions: AI2D, RealWorldQA, MathVista, MMMU."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from nvlm_trt.eval.adapters.folder import DataFolder, Row, read_json, read_jsonl, text, texts
from nvlm_trt.eval.adapters.prompts import LATER_SYSTEM, LETTER, SHORT, with_choices
from nvlm_trt.eval.tasks import LETTERS, Sample

NO_MASK_IMAGES: Final = "AI2D_TEST_NO_MASK_IMAGES"
"""Where the released evaluation has AI2D's images without mask (class AI2DDataset of its evaluation_datasets.py)."""


def ai2d(data: DataFolder) -> Iterator[Sample]:
    """AI2D with mask: ``ai2d_test_vlmevalkit.jsonl``, InternVL's ``test_vlmevalkit.jsonl``, and images; or in parquet.

    A line: image, question_id, question (with choices and instruction), answer (a letter). A row of the parquet files
    (lmms-lab/ai2d; lmms_eval/tasks/ai2d/utils.py): question, options, answer (the place of the right one, from 0, as
    text or number), image. InternVL's guide pairs the JSONL with AI2D_TEST.zip (internvl_chat/eval/vqa/README.md), and
    its figures with these are those that arXiv 2412.05271, table 7, has as with mask.
    """
    return _ai2d(data, None)


def ai2d_no_mask(data: DataFolder) -> Iterator[Sample]:
    """AI2D without mask: files as for ai2d, but images in ``AI2D_TEST_NO_MASK_IMAGES``; or in parquet.

    Questions and columns are those of ai2d. Of a parquet file the user alone can say that its images have no mask.
    """
    return _ai2d(data, NO_MASK_IMAGES)


def _ai2d(data: DataFolder, images: str | None) -> Iterator[Sample]:
    """Samples whose images lie in a folder of this name; None for that which the lines name."""
    if data.has("*.parquet") and not data.has("*.jsonl"):
        for index, row in enumerate(data.parquet("test-*.parquet", "*.parquet")):
            yield Sample(
                id=str(index),
                images=(data.extract(row["image"], str(index)),),
                question=with_choices(row["question"], row["options"]),
                history=(),
                answers=(_letter(row["options"], int(text(row["answer"], "answer"))),),
                metric="exact_match",
            )
        return
    file = data.find_one("*test_vlmevalkit.jsonl", "*ai2d*.jsonl", "*.jsonl")
    for row in data.rows(file, read_jsonl(file)):
        image = row["image"] if images is None else f"{images}/{PurePosixPath(row['image']).name}"
        yield Sample(
            id=text(row["question_id"], "question_id"),
            images=(data.image(image, folders=1),),
            question=row["question"],
            history=(),
            answers=texts(row["answer"], "answer"),
            metric="exact_match",
        )


def realworldqa(data: DataFolder) -> Iterator[Sample]:
    """RealWorldQA: ``annotations.json`` and the images, or the publisher's parquet files.

    An entry: image, question, answer; the question says itself how to answer. Entries with question_type, choices and
    correct_choice_index, as the released evaluation's own file has them, are asked in its words.
    """
    if data.has("*.parquet"):
        for index, row in enumerate(data.parquet("test-*.parquet", "*.parquet")):
            yield _realworldqa(index, row, data.extract(row["image"], str(index)))
        return
    file = data.find_one("annotations.json", "*.json")
    for index, row in enumerate(data.rows(file, read_json(file))):
        yield _realworldqa(index, row, data.image(row["image"]))


def _realworldqa(index: int, row: Row, image: Path) -> Sample:
    question: str = row["question"]
    kind = row.get("question_type")
    if kind == "multi-choice":
        question = with_choices(question, row["choices"])
        answers: tuple[str, ...] = (_letter(row["choices"], row["correct_choice_index"]),)
    else:
        question = question if kind is None else question + SHORT
        answers = texts(row["answer"], "answer")
    return Sample(str(index), (image,), question, (), answers, "exact_match", system=LATER_SYSTEM)


def _letter(choices: Sequence[str], place: int) -> str:
    """The letter of the choice at a place, counted from 0."""
    if not 0 <= place < len(choices):
        raise IndexError(f"choice {place} of {len(choices)}")
    return LETTERS[place]


def mathvista(data: DataFolder) -> Iterator[Sample]:
    """MathVista testmini: the publisher's parquet files, or ``testmini.json``, ``query.json`` and the images.

    An entry: pid, question, image, choices, answer, question_type (multi_choice or free_form), metadata with `task`,
    which is the category; query, the question with a hint how to answer, is a column, or in query.json by pid.
    """
    if data.has("testmini-*.parquet"):
        for row in data.parquet("testmini-*.parquet"):
            yield _mathvista(row, data.extract(row["decoded_image"], text(row["pid"], "pid")), row["query"])
        return
    queries: Mapping[str, str] = read_json(data.find_one("query.json"))
    file = data.find_one("testmini.json")
    for row in data.rows(file, read_json(file).values()):
        yield _mathvista(row, data.image(row["image"]), queries[text(row["pid"], "pid")])


def _mathvista(row: Row, image: Path, query: str) -> Sample:
    question, answers = query.replace("Hint: ", ""), texts(row["answer"], "answer")
    choices: tuple[str, ...] = ()
    if row["question_type"] == "multi_choice":
        choices = tuple(row["choices"])
        question = with_choices(row["question"], choices)
        answers = tuple(LETTERS[choices.index(answer)] for answer in answers)
    category = row["metadata"]["task"]
    pid = text(row["pid"], "pid")
    return Sample(pid, (image,), question, (), answers, "mathvista", choices=choices, category=category)


def mmmu(data: DataFolder) -> Iterator[Sample]:
    """MMMU validation: the publisher's parquet files, one folder a subject; categories are the 30 subjects.

    A row: id, question, options and, for open questions, answer (both may be lists written as text), question_type,
    image_1 to image_7, of which the first alone is shown, as the released evaluation does (prompt_style single_image,
    with the prompt of MMMU's llava1.5.yaml and its ``<image k>`` left out).
    """
    for row in data.parquet("validation-*.parquet"):
        name = text(row["id"], "id")
        options = texts(ast.literal_eval(row["options"]), "options")
        answer, several = text(row["answer"], "answer"), row["question_type"] == "multiple-choice"
        yield Sample(
            id=name,
            images=(data.extract(row["image_1"], name),),
            question=re.sub(r"<image \d>", "", _mmmu_prompt(row["question"].strip(), options, several=several)),
            history=(),
            answers=(answer,) if several else _listed(answer),
            metric="multiple_choice" if several else "open_answer",
            choices=options if several else (),
            category="_".join(name.split("_")[1:-1]),
        )


def _mmmu_prompt(question: str, options: tuple[str, ...], *, several: bool) -> str:
    if not several:
        return f"{question}{SHORT}"
    lines = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n{lines}\n{LETTER}"


def _listed(answer: str) -> tuple[str, ...]:
    """The right answers of an open question: one, or a list of texts written as text; "[0, 5]" is an answer itself."""
    try:
        several = ast.literal_eval(answer) if answer.startswith("[") else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # "[1, 2)"
        several = None
    if isinstance(several, list) and all(isinstance(each, str) for each in several):
        return tuple(several)
    return (answer,)
