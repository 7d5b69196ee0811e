"""OCRBench as its publisher ships it."""

from __future__ import annotations

import pytest

from nvlm_trt.errors import UserError

from .conftest import png


def row(part: str, answers: object, image: str = "a.png") -> dict[str, object]:
    kind = "Regular Text Recognition"
    question = "what is written in the image?"
    return {
        "dataset_name": part, "id": 1, "image_path": f"{part}/test/{image}", "question": question, "answers": answers,
        "type": kind,
    }  # fmt: skip


def test_ocrbench(write, read, data):
    write("OCRBench.json", [row("IIIT5K", "CENTRE"), row("HME100k", [r"\frac{a}{b}", "x"])])
    write("OCRBench_Images/IIIT5K/test/a.png")
    write("HME100k/test/a.png", png("blue"))
    plain, formula = read("ocrbench")
    assert (plain.answers, plain.metric, plain.category) == (("CENTRE",), "substring", "Regular Text Recognition")
    assert (formula.answers, formula.metric) == ((r"\frac{a}{b}", "x"), "substring_formula")
    assert formula.images == (data / "HME100k" / "test" / "a.png",)
    assert plain.question == "what is written in the image?"
    assert plain.system is None


def test_images_of_equal_names_are_told_apart_by_their_folders(write, read, data):
    """Of two images a.png below the folder the annotations mean the one whose path ends as they say."""
    write("OCRBench.json", [row("IIIT5K", "CENTRE"), row("svt", "under")])
    write("OCRBench_Images/IIIT5K/test/a.png")
    write("OCRBench_Images/svt/test/a.png", png("blue"))
    assert [sample.images[0] for sample in read("ocrbench")] == [
        data / "OCRBench_Images" / part / "test" / "a.png" for part in ("IIIT5K", "svt")
    ]


def test_a_missing_image_is_not_replaced_by_that_of_another_part(write, read):
    write("OCRBench.json", [row("svt", "under")])
    write("OCRBench_Images/IIIT5K/test/a.png")
    with pytest.raises(
        UserError, match=r"is missing; seen: 'svt/test/a\.png'; expected: a file 'svt/test/a\.png' at any"
    ):
        read("ocrbench")


def test_ocrbench_in_parquet(parquet, read):
    cell = {"bytes": png("blue"), "path": None}
    rows = [{"dataset": "HME100k", "question": "?", "question_type": "Handwritten", "answer": ["x"], "image": cell}]
    parquet("data/test-00000-of-00001.parquet", rows)
    (sample,) = read("ocrbench")
    assert (sample.answers, sample.metric, sample.category) == (("x",), "substring_formula", "Handwritten")
    assert sample.images[0].read_bytes() == png("blue")
