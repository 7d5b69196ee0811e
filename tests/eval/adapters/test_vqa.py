"""DocVQA, ChartQA, TextVQA and VQAv2 as their publishers ship them."""

from __future__ import annotations

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.tasks import Sample

SHORT = "Answer the question using a single word or phrase."


def docvqa_row(number: int) -> dict[str, object]:
    return {
        "questionId": number,
        "question": "What is the page?",
        "question_types": ["form"],
        "image": f"documents/abc{number}_1.png",
        "docId": 1,
        "ucsf_document_id": f"abc{number}",
        "ucsf_document_page_no": "1",
        "answers": ["3", "page 3"],
        "data_split": "val",
    }


def test_docvqa(write, read, data):
    write("spdocvqa_qas/val_v1.0_withQT.json", {"dataset_split": "val", "data": [docvqa_row(337)]})
    write("spdocvqa_images/abc337_1.png")
    assert read("docvqa") == (
        Sample(
            id="337",
            images=(data / "spdocvqa_images" / "abc337_1.png",),
            question="What is the page?\nAnswer the question using a single word, phrase, or number.",
            history=(),
            answers=("3", "page 3"),
            metric="anls",
            system="Follow the user's instruction and answer questions.",
        ),
    )


def test_docvqa_finds_images_where_the_annotations_say_too(write, read, data):
    write("val_v1.0.json", {"data": [docvqa_row(1)]})
    write("documents/abc1_1.png")
    assert read("docvqa")[0].images == (data / "documents" / "abc1_1.png",)


@pytest.mark.parametrize("other", ["documents/abc1_1.jpg", "documents/abc1_2.png"])
def test_a_missing_page_of_docvqa_is_not_replaced_by_another(write, read, other):
    write("val_v1.0.json", {"data": [docvqa_row(1)]})
    write(other)
    with pytest.raises(
        UserError, match=r"missing; seen: 'documents/abc1_1\.png'; expected: a file 'abc1_1\.png' at any"
    ):
        read("docvqa")


def test_docvqa_without_answers_is_the_test_split(write, read):
    write("test_v1.0.json", {"data": [{"questionId": 1, "question": "?", "image": "documents/a.png"}]})
    with pytest.raises(
        UserError, match=r"have no answers; seen: test_v1\.0\.json, entry 1; expected: val_v1\.0\*\.json"
    ):
        read("docvqa")


@pytest.mark.parametrize("content", [{"data": ["x"]}, ["x"], {"data": {"x": 1}}])
@pytest.mark.parametrize(("name", "file"), [("docvqa", "val_v1.0.json"), ("textvqa", "TextVQA_0.5.1_val.json")])
def test_an_entry_that_is_no_object_is_told_as_such(write, read, name, file, content):
    write(file, content)
    with pytest.raises(UserError, match=rf"{file}, entry 1: seen str, expected an object; mend this entry"):
        read(name)


def test_the_entries_may_be_the_whole_file(write, read):
    """The released evaluation looks for `data` and else takes the file for the list."""
    text = {"question_id": 5, "question": "what brand?", "image_id": "abc337_1", "answers": ["nous"] * 10}
    write("spdocvqa_images/abc337_1.png")
    for document, scene in (([docvqa_row(337)], [text]), ({"data": [docvqa_row(337)]}, {"data": [text]})):
        write("val_v1.0.json", document)
        write("TextVQA_0.5.1_val.json", scene)
        assert [sample.id for name in ("docvqa", "textvqa") for sample in read(name)] == ["337", "5"]


def test_chartqa_has_two_halves(write, read):
    write("ChartQA Dataset/test/test_human.json", [{"imgname": "a.png", "query": "How many?", "label": "14"}])
    write("ChartQA Dataset/test/test_augmented.json", [{"imgname": "b.png", "query": "Which?", "label": 5.5}])
    for name in "ab":
        write(f"ChartQA Dataset/test/png/{name}.png")
    augmented, human = read("chartqa")
    assert (human.id, human.category, human.answers) == ("human-0", "human", ("14",))
    assert (augmented.id, augmented.category, augmented.answers) == ("augmented-0", "augmented", ("5.5",))
    assert human.question == f"How many?\n{SHORT}"
    assert human.metric == "relaxed_accuracy"
    assert human.images[0].name == "a.png"
    assert human.system is None


def test_textvqa(write, read):
    row = {"question_id": 34602, "question": "what brand?", "image_id": "003a8ae2ef43b901", "answers": ["nous"] * 10}
    write("TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    write("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["nous"]}]})
    write("train_images/003a8ae2ef43b901.jpg")
    (sample,) = read("textvqa")
    assert (sample.id, sample.metric, sample.answers) == ("34602", "vqa_accuracy", ("nous",) * 10)
    assert sample.question == f"what brand?\n{SHORT}"
    assert sample.images[0].name == "003a8ae2ef43b901.jpg"


def test_vqav2_joins_questions_and_annotations(write, read):
    questions = [
        {"image_id": 42, "question": "Is it red?", "question_id": 420},
        {"image_id": 42, "question": "?", "question_id": 421},
    ]
    answers = [
        {"question_id": 421, "image_id": 42, "answer_type": "number", "answers": [{"answer": "2", "answer_id": 1}]},
        {"question_id": 420, "image_id": 42, "answer_type": "yes/no", "answers": [{"answer": "yes"}, {"answer": "no"}]},
    ]
    write("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write("v2_mscoco_val2014_annotations.json", {"annotations": answers})
    write("val2014/COCO_val2014_000000000042.jpg")
    first, second = read("vqav2")
    assert (first.id, first.answers, first.category) == ("420", ("yes", "no"), "yes/no")
    assert (second.id, second.answers, second.category) == ("421", ("2",), "number")
    assert first.images == second.images
    assert first.question == f"Is it red?\n{SHORT}"
    assert first.metric == "vqa_accuracy"
