"""AI2D, RealWorldQA, MathVista and MMMU as their publishers ship them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvlm_trt.errors import UserError

from .conftest import png

LETTER = "Answer with the option's letter from the given choices directly."
CELL = {"bytes": png("blue"), "path": "x.png"}


def test_ai2d_asks_what_the_file_says(write, read):
    question = f"What is A?\nA. ears\nB. nose\n{LETTER}"
    row = {"image": "data/ai2diagram/AI2D_TEST/0.png", "question_id": 7, "question": question, "answer": "B"}
    write("ai2d_test_vlmevalkit.jsonl", [row])
    write("ai2d_test.jsonl", [row | {"answer": "A"}])
    write("AI2D_TEST/0.png")
    (sample,) = read("ai2d")
    assert (sample.id, sample.question, sample.answers, sample.metric) == ("7", question, ("B",), "exact_match")
    assert sample.images[0].name == "0.png"


def test_ai2d_is_read_as_internvl_lays_it_out(write, read, data):
    row = {"image": "data/ai2diagram/AI2D_TEST/0.png", "question_id": 7, "question": "What is A?", "answer": "B"}
    write("ai2diagram/test_vlmevalkit.jsonl", [row])
    write("ai2diagram/test.jsonl", [row | {"answer": "A"}])
    write("ai2diagram/AI2D_TEST/0.png")
    (sample,) = read("ai2d")
    assert (sample.answers, sample.images) == (("B",), (data / "ai2diagram/AI2D_TEST/0.png",))


def test_ai2d_without_mask_asks_the_same_of_the_images_without(write, parquet, read, data):
    row = {"image": "AI2D_TEST/0.png", "question_id": 7, "question": "What is A?", "answer": "B"}
    write("ai2d_test_vlmevalkit.jsonl", [row])
    write("AI2D_TEST/0.png")
    with pytest.raises(UserError, match=r"AI2D_TEST_NO_MASK_IMAGES/0\.png' at any depth"):
        read("ai2d_no_mask")
    write("AI2D_TEST_NO_MASK_IMAGES/0.png", png("blue"))
    (masked,), (plain,) = read("ai2d"), read("ai2d_no_mask")
    assert plain == replace(masked, images=(data / "AI2D_TEST_NO_MASK_IMAGES/0.png",))
    assert masked.images == (data / "AI2D_TEST/0.png",)
    (data / "ai2d_test_vlmevalkit.jsonl").unlink()
    parquet("data/test-00000-of-00001.parquet", [ai2d_row()])
    assert read("ai2d_no_mask") == read("ai2d"), "of a parquet file the name alone says what its images are"


@pytest.mark.parametrize("other", ["ai2d/images/0.png", "0.png", "AI2D_TEST/0.jpg"])
def test_a_missing_image_of_ai2d_is_not_replaced_by_one_of_another_folder(write, read, other):
    row = {"image": "data/ai2diagram/AI2D_TEST/0.png", "question_id": 7, "question": "What is A?", "answer": "B"}
    write("ai2d_test_vlmevalkit.jsonl", [row])
    write(other)
    with pytest.raises(UserError, match=r"is missing; .*expected: a file 'AI2D_TEST/0\.png' at any depth below"):
        read("ai2d")


def ai2d_row(**change: object) -> dict[str, object]:
    """A row with the columns and types of lmms-lab/ai2d."""
    return {"question": "What is A?", "options": ["ears", "nose", "0", "1"], "answer": "2", "image": CELL} | change


def test_ai2d_in_parquet_is_asked_in_the_words_of_the_prepared_file(parquet, read):
    rows = [ai2d_row(), ai2d_row(options=["a", "b"], answer=0, image=CELL | {"path": None})]
    parquet("data/test-00000-of-00001.parquet", rows)
    first, second = read("ai2d")
    assert first.question == f"What is A?\nA. ears\nB. nose\nC. 0\nD. 1\n{LETTER}"
    assert (first.id, first.answers, first.metric, first.choices) == ("0", ("C",), "exact_match", ())
    assert (second.id, second.answers, second.question) == ("1", ("A",), f"What is A?\nA. a\nB. b\n{LETTER}")
    assert first.images[0].read_bytes() == second.images[0].read_bytes() == png("blue")


@pytest.mark.parametrize("answer", ["4", "-1", 4, "C", 1.5])
def test_an_answer_of_ai2d_that_is_the_place_of_no_option_is_refused(parquet, read, answer):
    parquet("data/test-00000-of-00001.parquet", [ai2d_row(), ai2d_row(answer=answer)])
    with pytest.raises(UserError, match=r"AI2D: data/test-.*parquet, entry 2 is not as its publisher writes it"):
        read("ai2d")


def test_a_list_of_one_answer_is_that_answer(write, parquet, read):
    """The released evaluation takes it out of the list too."""
    write("0.png")
    write("ai2d_test_vlmevalkit.jsonl", [{"image": "0.png", "question_id": 7, "question": "What?", "answer": ["B"]}])
    write("annotations.json", [{"image": "0.png", "question": "Which?", "answer": ["left"]}])
    write("images/1.jpg")
    write("images/2.jpg")
    write("testmini.json", {"1": FREE | {"answer": ["4"]}, "2": CHOICE | {"answer": ["102"]}})
    write("query.json", {"1": HINT, "2": HINT})
    assert [sample.answers for name in ("ai2d", "realworldqa", "mathvista") for sample in read(name)] == [
        ("B",), ("left",), ("4",), ("B",),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["ai2d", "realworldqa", "mathvista"])
def test_a_list_of_two_answers_is_refused(write, read, name):
    several = {"answer": ["B", "C"]}
    write("images/1.jpg")
    row = {"image": "images/1.jpg", "question_id": 7, "question": "What?"} | several
    write("ai2d_test_vlmevalkit.jsonl", [row])
    write("annotations.json", [row])
    write("testmini.json", {"1": FREE | several})
    write("query.json", {"1": HINT})
    with pytest.raises(UserError, match="entry 1: answers: seen 2, expected 1 for"):
        read(name)


def test_where_both_forms_of_ai2d_lie_the_prepared_one_is_read(write, parquet, read):
    parquet("data/test-00000-of-00001.parquet", [ai2d_row()])
    write("ai2d_test_vlmevalkit.jsonl", [{"image": "0.png", "question_id": 7, "question": "What?", "answer": "B"}])
    write("0.png")
    assert [sample.id for sample in read("ai2d")] == ["7"]


def test_a_place_of_no_choice_is_refused_for_realworldqa_too(write, read):
    row = {"image": "0.webp", "question": "Which?", "question_type": "multi-choice", "choices": ["left", "right"]}
    write("annotations.json", [row | {"correct_choice_index": 2}])
    write("0.webp")
    with pytest.raises(UserError, match="seen: IndexError: choice 2 of 2"):
        read("realworldqa")


def test_realworldqa_asks_what_the_file_says(write, read):
    question = "Which way?\nA. left\nB. right\nPlease answer directly with only the letter of the correct option."
    write("annotations.json", [{"image": "0.webp", "question": question, "answer": "B"}])
    write("images/0.webp")
    (sample,) = read("realworldqa")
    assert (sample.question, sample.answers, sample.metric) == (question, ("B",), "exact_match")
    assert sample.system == "Follow the user's instruction and answer questions."


def test_realworldqa_in_the_form_of_the_released_evaluation(write, read):
    rows = [
        {"image": "0.webp", "question": "Which?", "question_type": "multi-choice", "choices": ["left", "right"],
         "correct_choice_index": 1},
        {"image": "1.webp", "question": "How many?", "question_type": "short", "answer": 3},
    ]  # fmt: skip
    write("annotations.json", rows)
    write("0.webp")
    write("1.webp")
    choice, short = read("realworldqa")
    assert choice.question == f"Which?\nA. left\nB. right\n{LETTER}"
    assert choice.answers == ("B",)
    assert short.question == "How many?\nAnswer the question using a single word or phrase."
    assert short.answers == ("3",)


def test_realworldqa_in_parquet(parquet, read):
    parquet("data/test-00000-of-00001.parquet", [{"image": CELL, "question": "Which?", "answer": "A"}])
    (sample,) = read("realworldqa")
    assert sample.images[0].read_bytes() == png("blue")
    assert sample.images[0].suffix == ".png"


HINT = "Hint: Please answer the question requiring an integer answer.\nQuestion: How many?"
FREE = {"pid": "1", "question": "How many?", "image": "images/1.jpg", "choices": None, "answer": "4",
        "question_type": "free_form", "answer_type": "integer", "metadata": {"task": "math word problem"}}  # fmt: skip
CHOICE = FREE | {"pid": "2", "question": "Find x", "image": "images/2.jpg", "choices": ["97", "102"], "answer": "102",
                 "question_type": "multi_choice", "metadata": {"task": "geometry problem solving"}}  # fmt: skip


def check_mathvista(samples):
    free, choice = samples
    assert free.question == "Please answer the question requiring an integer answer.\nQuestion: How many?"
    assert (free.id, free.answers, free.choices, free.metric) == ("1", ("4",), (), "mathvista")
    assert free.category == "math word problem"
    assert choice.question == f"Find x\nA. 97\nB. 102\n{LETTER}"
    assert (choice.answers, choice.choices) == (("B",), ("97", "102"))


def test_mathvista(write, read):
    write("testmini.json", {"1": FREE, "2": CHOICE})
    write("query.json", {"1": HINT, "2": "Hint: unused"})
    write("images/1.jpg")
    write("images/2.jpg")
    samples = read("mathvista")
    check_mathvista(samples)
    assert [sample.images[0].name for sample in samples] == ["1.jpg", "2.jpg"]


def test_mathvista_finds_the_query_of_an_entry_by_its_pid(write, read):
    write("testmini.json", {"first": FREE | {"pid": 1}})
    write("query.json", {"1": HINT})
    write("images/1.jpg")
    assert read("mathvista")[0].id == "1"


def test_an_entry_of_mathvista_that_is_no_object_is_told_as_such(write, read):
    write("testmini.json", {"1": "4"})
    write("query.json", {"1": HINT})
    with pytest.raises(UserError, match=r"MathVista: testmini\.json, entry 1: seen str, expected an object"):
        read("mathvista")


def test_mathvista_in_parquet(parquet, read):
    rows = [row | {"decoded_image": CELL, "query": HINT} for row in (FREE, CHOICE)]
    parquet("data/testmini-00000-of-00001-725687bf7a18d64b.parquet", rows)
    check_mathvista(read("mathvista"))


def mmmu_row(**change: object) -> dict[str, object]:
    row: dict[str, object] = {
        "id": "validation_Art_Theory_3",
        "question": "<image 1> Which style is <image 2>? ",
        "options": "['Gothic', \"don't know\"]",
        "answer": "A",
        "question_type": "multiple-choice",
        "subfield": "",
        "image_1": CELL,
        "image_2": None,
    }
    return row | change


def test_mmmu(parquet, read):
    parquet("Art_Theory/validation-00000-of-00001.parquet", [mmmu_row()])
    parquet("Art_Theory/test-00000-of-00001.parquet", [mmmu_row(id="test_Art_Theory_1", answer="?")])
    (sample,) = read("mmmu")
    assert sample.question == f" Which style is ?\n(A) Gothic\n(B) don't know\n\n{LETTER}"
    assert (sample.choices, sample.answers, sample.metric) == (("Gothic", "don't know"), ("A",), "multiple_choice")
    assert (sample.id, sample.category) == ("validation_Art_Theory_3", "Art_Theory")
    assert sample.images[0].read_bytes() == png("blue")


def test_open_questions_of_mmmu_may_have_several_answers(parquet, read):
    rows = [
        mmmu_row(id=f"validation_Math_{index}", question_type="open", options="[]", answer=answer, question="Find x.")
        for index, answer in enumerate(["7", "['24/7', '3.43']"])
    ]
    parquet("Math/validation-00000-of-00001.parquet", rows)
    one, two = read("mmmu")
    assert one.question == "Find x.\nAnswer the question using a single word or phrase."
    assert (one.answers, one.metric, one.choices) == (("7",), "open_answer", ())
    assert two.answers == ("24/7", "3.43")


@pytest.mark.parametrize("answer", ["[1, 2)", "[0, 5]", "['a', 1]", "[x]", "[", "[" * 9000])
def test_an_open_answer_with_a_bracket_that_is_no_list_of_texts_is_kept(parquet, read, answer):
    parquet("Math/validation-0.parquet", [mmmu_row(question_type="open", options="[]", answer=answer)])
    assert read("mmmu")[0].answers == (answer,)
