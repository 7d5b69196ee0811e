"""Questions with short answers: DocVQA, ChartQA, TextVQA, VQAv2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nvlm_trt.errors import UserError
from nvlm_trt.eval.adapters.folder import DataFolder, read_json, text, texts
from nvlm_trt.eval.adapters.prompts import LATER_SYSTEM, SHORT, SHORT_OR_NUMBER
from nvlm_trt.eval.tasks import Sample


def docvqa(data: DataFolder) -> Iterator[Sample]:
    """DocVQA, task 1 (SP-DocVQA): ``val_v1.0.json`` or ``val_v1.0_withQT.json``, and the pages.

    An entry of `data`: questionId, question, image ("documents/x.png"; the pages are unpacked to another folder, and
    their names are unique), answers. The test split has no answers; its score comes from the RRC server.
    """
    file = data.find_one("*val_v1.0_withQT.json", "*val_v1.0.json", "*_v1.0.json")
    for row in data.rows(file, _entries(file)):
        if "answers" not in row:
            raise UserError(
                "the questions have no answers", seen=data.place, expected="val_v1.0*.json: the test split has none"
            )
        yield Sample(
            id=text(row["questionId"], "questionId"),
            images=(data.image(row["image"], folders=0),),
            question=row["question"] + SHORT_OR_NUMBER,
            history=(),
            answers=texts(row["answers"], "answers"),
            metric="anls",
            system=LATER_SYSTEM,
        )


def chartqa(data: DataFolder) -> Iterator[Sample]:
    """ChartQA: ``test_human.json`` and ``test_augmented.json``, charts in ``png`` beside them; categories are the two.

    An entry: imgname, query, label.
    """
    for file in data.find("test_*.json"):
        part = file.stem.partition("_")[2]
        for index, row in enumerate(data.rows(file, read_json(file))):
            yield Sample(
                id=f"{part}-{index}",
                images=(data.image(f"{file.parent.name}/png/{row['imgname']}"),),
                question=row["query"] + SHORT,
                history=(),
                answers=texts(row["label"], "label"),
                metric="relaxed_accuracy",
                category=part,
            )


def textvqa(data: DataFolder) -> Iterator[Sample]:
    """TextVQA: ``TextVQA_0.5.1_val.json`` and the images.

    An entry of `data`: question_id, question, image_id, answers (ten).
    """
    file = data.find_one("TextVQA_[0-9]*_val.json")  # its publisher's TextVQA_Rosetta_OCR_v0.2_val.json has no answers
    for row in data.rows(file, _entries(file)):
        yield Sample(
            id=text(row["question_id"], "question_id"),
            images=(data.image(row["image_id"]),),
            question=row["question"] + SHORT,
            history=(),
            answers=texts(row["answers"], "answers"),
            metric="vqa_accuracy",
        )


def vqav2(data: DataFolder) -> Iterator[Sample]:
    """VQAv2: ``v2_OpenEnded_mscoco_val2014_questions.json``, ``v2_mscoco_val2014_annotations.json``, COCO's images.

    An entry of `questions`: question_id, question, image_id; of `annotations`: question_id, answers (ten objects with
    `answer`), answer_type, which is the category. The published figure is of test-dev, from the EvalAI server.
    """
    annotations = read_json(data.find_one("v2_mscoco_val2014_annotations.json"))["annotations"]
    by_question = {row["question_id"]: row for row in annotations}
    file = data.find_one("v2_OpenEnded_mscoco_val2014_questions.json")
    for row in data.rows(file, read_json(file)["questions"]):
        right = by_question[row["question_id"]]
        yield Sample(
            id=text(row["question_id"], "question_id"),
            images=(data.image(f"COCO_val2014_{row['image_id']:012d}.jpg"),),
            question=row["question"] + SHORT,
            history=(),
            answers=tuple(text(each["answer"], "answer") for each in right["answers"]),
            metric="vqa_accuracy",
            category=right["answer_type"],
        )


def _entries(file: Path) -> Iterable[object]:
    """The entries of a file: the list that is its `data`, or that it is, as the released evaluation reads it."""
    content = read_json(file)
    entries: Iterable[object] = content["data"] if isinstance(content, dict) else content
    return entries
