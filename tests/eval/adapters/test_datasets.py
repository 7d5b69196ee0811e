"""What all data sets share: the registry, limits, and folders that are not what they should be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.adapters.datasets import DATASETS, read_dataset
from nvlm_trt.eval.tasks import Sample

from .conftest import png

ROW = {"imgname": "a.png", "query": "How many?", "label": "14"}


def question(pid: str, colour: str) -> dict[str, object]:
    """A row of MathVista in parquet, whose image is called by its id."""
    return {
        "pid": pid, "query": "How many?", "answer": "4", "question_type": "free_form", "metadata": {"task": "counting"},
        "decoded_image": {"bytes": png(colour), "path": "x.png"},
    }  # fmt: skip


def test_every_data_set_has_the_published_figures_of_the_model_card_or_the_paper():
    figures = {name: (dataset.published.hugging_face, dataset.published.megatron) for name, dataset in DATASETS.items()}
    assert figures == {
        "docvqa": (92.6, 92.6),
        "chartqa": (86.0, 86.0),
        "textvqa": (82.6, 82.1),
        "vqav2": (85.4, 85.4),
        "ocrbench": (85.2, 85.3),
        "ai2d": (None, 85.2),
        "ai2d_no_mask": (94.2, 94.2),
        "realworldqa": (69.5, 69.7),
        "mathvista": (65.2, 65.2),
        "mmmu": (58.7, 59.7),
    }


def test_the_figure_of_ai2d_without_mask_stands_only_beside_a_set_that_is_named_so():
    shown = {name: (dataset.published.nearest, dataset.published.split) for name, dataset in DATASETS.items()}
    assert shown["ai2d"] == (85.2, "test, with mask")
    assert shown["ai2d_no_mask"] == (94.2, "test, no mask")
    assert shown["textvqa"] == (82.6, "val"), "with the released code, where that was published"


def test_a_limit_reads_no_further(write, write_chartqa, read):
    write_chartqa(ROW, ROW | {"imgname": "missing.png"})
    write("test/png/a.png")
    assert len(read("chartqa", 2)) == 2
    with pytest.raises(UserError, match=r"an image of the data set is missing; seen: 'test/png/missing\.png'"):
        read("chartqa")


def test_charts_of_the_same_name_in_another_split_are_told_apart(write, write_chartqa, read, data):
    for split in ("train", "test"):
        write(f"{split}/png/a.png")
    write_chartqa(ROW)
    assert read("chartqa")[1].images == (data / "test" / "png" / "a.png",)


@pytest.mark.parametrize(
    "other", ["train/png/a.png", "val/test/a.png", "test/png/a.jpg", "test/png/a.png.txt", "a.png"]
)
def test_a_missing_chart_is_not_replaced_by_another_of_its_name(write, write_chartqa, read, data, other):
    write(other)
    write_chartqa(ROW)
    message = (
        rf"image of the data set is missing; seen: 'test/png/a\.png'; expected: a file 'test/png/a\.png' at .*{data}"
    )
    with pytest.raises(UserError, match=message):
        read("chartqa")


def test_charts_are_found_from_within_their_folder(write, write_chartqa, read, data, tmp_path, monkeypatch):
    write("test/png/a.png")
    write_chartqa(ROW)
    monkeypatch.chdir(data / "test")
    samples = read_dataset("chartqa", Path(), tmp_path)
    assert samples == read("chartqa")


def test_an_image_that_cannot_be_told_from_another_is_refused(write, read):
    write("TextVQA_0.5.1_val.json", {"data": [{"question_id": 1, "question": "?", "image_id": "a", "answers": ["x"]}]})
    for part in "xy":
        write(f"{part}/a.jpg")
    with pytest.raises(UserError, match=r"several images are called a; seen: x/a\.jpg, y/a\.jpg"):
        read("textvqa")


def test_an_entry_of_another_format_is_told_with_what_is_expected(write, write_chartqa, read):
    write_chartqa(ROW, {"image": "a.png"})
    write("test/png/a.png")
    message = r"ChartQA: test/test_human\.json, entry 2 .*seen: KeyError: .*expected: .*imgname, query, label"
    with pytest.raises(UserError, match=message):
        read("chartqa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": []}, "answers: seen none, expected a right one"),
        ({"label": ["14", "15"]}, "answers: seen 2, expected 1 for relaxed_accuracy"),
        ({"query": "What does <image> show?"}, "question: seen <image>, expected none"),
        ({"query": "Is <image> above <image>?"}, "images: seen 1, expected 2"),
        ({"query": "Is it \ud800?"}, r"question: seen half a surrogate pair \('\\ud800'\), expected whole characters"),
        ({"imgname": "x" * 300}, "is not as its publisher writes it; seen: OSError.*File name too long"),
    ],
)
def test_a_sample_that_cannot_be_asked_or_scored_is_told_with_file_and_entry(
    write, write_chartqa, read, change, message
):
    write("test/png/a.png")
    write_chartqa(ROW, ROW | change)
    with pytest.raises(UserError, match=rf"ChartQA: test/test_human\.json, entry 2:? {message}"):
        read("chartqa")


NO_TEXT = r"seen (None|True|nan), expected a text or a number; mend this entry"


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("docvqa", {"questionId": None}, "questionId"),
        ("docvqa", {"answers": None}, "answers"),
        ("docvqa", {"answers": ["x", None]}, "answers"),
        ("docvqa", {"image": None}, "image"),
        ("textvqa", {"question_id": None}, "question_id"),
        ("textvqa", {"answers": ["x", True]}, "answers"),
        ("vqav2", {"question_id": None}, "question_id"),
        ("vqav2", {"answers": [{"answer": None}]}, "answer"),
        ("chartqa", {"label": float("nan")}, "label"),
        ("chartqa", {"label": True}, "label"),
        ("ocrbench", {"answers": None}, "answers"),
        ("ai2d", {"question_id": None}, "question_id"),
        ("ai2d", {"answer": None}, "answer"),
        ("realworldqa", {"answer": None}, "answer"),
        ("mathvista", {"pid": None}, "pid"),
        ("mathvista", {"answer": None}, "answer"),
    ],
)
def test_null_is_no_answer_and_no_id(write, read, name, change, field):
    """Made a text it would be the right answer "None", which normalises to 0."""
    row = {
        "questionId": 1, "question_id": 1, "pid": "1", "question": "What?", "query": "What?", "image": "a.jpg",
        "image_id": "COCO_val2014_000000000042", "image_path": "a.jpg", "imgname": "a.jpg", "answers": ["x"],
        "answer": "x", "label": "x", "dataset_name": "a", "type": "b", "question_type": "free_form", "choices": None,
        "metadata": {"task": "c"},
    } | change  # fmt: skip
    write("data/png/a.jpg")
    write("test_augmented.json", [])
    write("COCO_val2014_000000000042.jpg")
    write("a.jpg")
    write("val_v1.0.json", {"data": [row]})
    write("TextVQA_0.5.1_val.json", {"data": [row]})
    write("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [row | {"image_id": 42}]})
    right = {"answers": [{"answer": "x"}], "answer_type": "other"} | change
    write("v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1} | right]})
    write("test_human.json", [row])
    write("OCRBench.json", [row])
    write("ai2d_test_vlmevalkit.jsonl", [row])
    write("annotations.json", [{key: value for key, value in row.items() if key != "question_type"}])
    write("testmini.json", {"1": row})
    write("query.json", {"1": "What?"})
    with pytest.raises(UserError, match=rf", entry 1: {field}: {NO_TEXT}"):
        read(name)


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("ocrbench", {"answer": ["x", None]}, "answer"),
        ("realworldqa", {"answer": None}, "answer"),
        ("ai2d", {"answer": None}, "answer"),
        ("mathvista", {"pid": None}, "pid"),
        ("mathvista", {"answer": None}, "answer"),
        ("mmmu", {"id": None}, "id"),
        ("mmmu", {"answer": None}, "answer"),
        ("mmmu", {"question_type": "multiple-choice", "answer": None}, "answer"),
        ("mmmu", {"options": "['x', None]"}, "options"),
    ],
)
def test_null_is_no_answer_and_no_id_in_parquet_either(parquet, read, name, change, field):
    cell = {"bytes": png("red"), "path": "x.png"}
    row = {
        "id": "validation_Math_1", "pid": "1", "question": "What?", "query": "What?", "image": cell, "image_1": cell,
        "decoded_image": cell, "answer": "x", "dataset": "a", "question_type": "open", "metadata": {"task": "c"},
        "options": ["x", "y"] if name == "ai2d" else "['x', 'y']",
    }  # fmt: skip
    if name == "realworldqa":
        del row["question_type"]
    file = {"mathvista": "testmini-0.parquet", "mmmu": "Math/validation-0.parquet"}.get(name, "test-0.parquet")
    parquet(file, [row | change])
    with pytest.raises(UserError, match=rf", entry 1: {field}: {NO_TEXT}"):
        read(name)


def test_a_text_that_is_none_is_told(write, read):
    row = {"image_path": "a.png", "question": 5, "answers": "x", "dataset_name": "a", "type": "b"}
    write("a.png")
    write("OCRBench.json", [row])
    with pytest.raises(UserError, match=r"OCRBench: OCRBench\.json, entry 1: question: seen 5, expected a text"):
        read("ocrbench")


def test_two_samples_of_one_id_are_refused(parquet, read):
    parquet("a/testmini-0.parquet", [question("7", "red")])
    parquet("b/testmini-1.parquet", [question("8", "red"), question("7", "blue")])
    with pytest.raises(UserError, match=r"MathVista: b/testmini-1\.parquet, entry 2: id: seen '7' a second time"):
        read("mathvista")
    assert len(read("mathvista", 2)) == 2


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_an_annotation_file_that_is_no_json_is_refused(write, read, content):
    write("OCRBench.json", content)
    with pytest.raises(UserError, match="an annotation file cannot be read"):
        read("ocrbench")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_folder_without_the_data_set_is_refused(parquet, read, name):
    with pytest.raises(UserError, match="no annotation file of this data set"):
        read(name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("docvqa", "train_v1.0.json"),
        ("ai2d", "ai2d_train_12k.jsonl"),
        ("ai2d", "train.jsonl"),
        ("realworldqa", "training.json"),
        ("ocrbench", "data/train-00000-of-00001.parquet"),
        ("ocrbench", "default/train/0000.parquet"),
        ("realworldqa", "data/TRAIN-0.parquet"),
        ("ai2d", "data/ai2d_train.parquet"),
    ],
)
def test_training_data_are_not_evaluated(write, parquet, read, name, file):
    """Beside their score would stand a figure of test data, or of validation data."""
    write(file, b"unread")
    with pytest.raises(UserError, match=rf"the folder has training data alone; seen: {file}; expected: .*; give the"):
        read(name)


def test_training_data_beside_what_is_evaluated_are_passed_over(write, parquet, read):
    write("ai2diagram/train.jsonl", b"unread")
    write("ai2diagram/constrained.jsonl", [{"image": "0.png", "question_id": 7, "question": "What?", "answer": "B"}])
    write("0.png")
    assert [sample.id for sample in read("ai2d")] == ["7"]


def test_one_half_of_chartqa_is_read_but_not_compared_with_the_figure_of_both(write, write_chartqa, read, data):
    write_chartqa(ROW)
    write("test/png/a.png")
    write("val/val_human.json", [ROW])
    assert DATASETS["chartqa"].published_for(read("chartqa")) == DATASETS["chartqa"].published
    (data / "test" / "test_augmented.json").unlink()
    half = read("chartqa")
    assert {sample.category for sample in half} == {"human"}
    assert DATASETS["chartqa"].published_for(half) is None


@pytest.mark.parametrize(("name", "parts"), [("mmmu", 30), ("ocrbench", 10)])
def test_a_score_of_some_categories_is_not_compared_with_the_figure_of_all(name, parts):
    samples = [Sample(str(part), (), "?", (), ("x",), "exact", category=f"part {part}") for part in range(parts)]
    assert DATASETS[name].published_for(samples) == DATASETS[name].published
    assert DATASETS[name].published_for([*samples[1:], *samples[1:]]) is None


def test_two_files_for_one_are_refused(write, read):
    write("a/TextVQA_0.5.1_val.json", {"data": []})
    write("b/TextVQA_0.5.1_val.json", {"data": []})
    with pytest.raises(UserError, match="several such annotation files; seen: a/TextVQA"):
        read("textvqa")


def test_an_empty_data_set_an_unknown_one_and_a_missing_folder_are_refused(write, read, tmp_path):
    write("TextVQA_0.5.1_val.json", {"data": []})
    with pytest.raises(UserError, match="TextVQA: the data set is empty"):
        read("textvqa")
    with pytest.raises(UserError, match="no such data set; seen: docqa"):
        read("docqa")
    with pytest.raises(UserError, match="no such folder of data"):
        read_dataset("textvqa", tmp_path / "none", tmp_path)


def test_no_file_outside_of_the_folder_is_taken(write, read, data, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"png")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        write(
            "OCRBench.json", [{"image_path": name, "question": "?", "answers": "x", "dataset_name": "a", "type": "b"}]
        )
        with pytest.raises(UserError, match="is missing"):
            read("ocrbench")


def test_an_image_of_a_parquet_file_stays_in_its_folder_whatever_it_is_called(parquet, read, tmp_path):
    names = ["7", "../../escaped", "..", ".._.._escaped", "a/b", "a_b", str(tmp_path / "elsewhere"), "x" * 300, "\0"]
    colours = ["red", "green", "blue", "white", "black", "grey", "pink", "brown", "gold"]
    parquet("testmini-0.parquet", [question(*pair) for pair in zip(names, colours, strict=True)])
    before = {*tmp_path.iterdir()}
    samples = read("mathvista")
    assert [sample.images[0].read_bytes() for sample in samples] == [png(colour) for colour in colours]
    assert {sample.images[0].parent for sample in samples} == {tmp_path / "extracted"}
    assert {*tmp_path.iterdir()} - before == {tmp_path / "extracted"}
    assert samples[0].images[0].name.startswith("7-"), "a harmless name is kept"


def test_an_image_that_was_extracted_before_is_left_and_one_of_other_bytes_lies_beside_it(parquet, read):
    """With --output two data sets may share a folder, and a run of the first may be reading its images."""
    images = []
    for colour in ("#010203", "#010204"):
        parquet("testmini-0.parquet", [question("7", colour)])
        images.append(read("mathvista")[0].images[0])
        os.utime(images[-1], (0, 0))
    assert read("mathvista")[0].images[0] == images[1]
    assert [image.stat().st_mtime for image in images] == [0, 0]
    assert [image.read_bytes() for image in images] == [png("#010203"), png("#010204")]
    assert {*images[0].parent.iterdir()} == {*images}


def test_an_extracted_image_that_was_damaged_is_written_anew(parquet, read):
    parquet("testmini-0.parquet", [question("7", "red")])
    image = read("mathvista")[0].images[0]
    image.write_bytes(b"")
    assert read("mathvista")[0].images[0].read_bytes() == png("red")


def test_an_image_that_cannot_be_written_is_a_mistake_of_the_user(parquet, read, tmp_path):
    parquet("testmini-0.parquet", [question("7", "red")])
    (tmp_path / "extracted").write_bytes(b"no folder")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); seen: .*7-\w+\.png.*--output"):
        read("mathvista")


def test_parquet_without_pyarrow_is_refused_with_what_to_install(write, read, monkeypatch):
    write("Art/validation-00000-of-00001.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need pyarrow; .*\.\[eval\]"):
        read("mmmu")
