"""Tasks as JSONL: what is read, and what is refused with file, line, seen and expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.tasks import Sample, read_tasks

LINE = {"id": "1", "images": [], "question": "2 + 2?", "answers": ["4"], "metric": "exact"}
CHOICE = {"answers": ["B"], "metric": "multiple_choice", "choices": ["red", "blue"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a task with two image files, and one outside of it."""
    (tmp_path / "outside.png").write_bytes(b"png")
    task = tmp_path / "task"
    (task / "images").mkdir(parents=True)
    (task / "images" / "a.png").write_bytes(b"png")
    (task / "b.png").write_bytes(b"png")
    return task


def read(folder: Path, *lines: dict[str, Any] | str) -> tuple[Sample, ...]:
    file = folder / "task.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_tasks(file)


def test_a_line_with_the_required_keys_is_a_sample(folder: Path):
    (sample,) = read(folder, LINE)
    assert sample == Sample("1", (), "2 + 2?", (), ("4",), "exact")


def test_every_key_is_read(folder: Path):
    full = {
        "id": "x",
        "images": ["images/a.png", "b.png"],
        "question": "And the second?",
        "history": [["Which colour has <image> and <image>?", "Red."]],
        "category": "colour",
        "system": "Be brief.",
        "max_tokens": 4,
        "max_tiles": 1,
        **CHOICE,
    }
    (sample,) = read(folder, full)
    assert sample == Sample(
        id="x",
        images=((folder / "images/a.png").resolve(), (folder / "b.png").resolve()),
        question="And the second?",
        history=(("Which colour has <image> and <image>?", "Red."),),
        answers=("B",),
        metric="multiple_choice",
        choices=("red", "blue"),
        category="colour",
        system="Be brief.",
        max_tokens=4,
        max_tiles=1,
    )


def test_blank_lines_are_skipped_and_samples_keep_their_order(folder: Path):
    samples = read(folder, {**LINE, "id": "b"}, "", {**LINE, "id": "a"}, "")
    assert [sample.id for sample in samples] == ["b", "a"]


def test_a_question_may_hold_the_line_ends_of_unicode(folder: Path):
    (folder / "task.jsonl").write_text(json.dumps(LINE | {"question": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read_tasks(folder / "task.jsonl")[0].question == "a\u2028b\x85c"


def test_an_absolute_image_may_lie_anywhere(folder: Path):
    outside = folder.parent / "outside.png"
    (sample,) = read(folder, {**LINE, "images": [str(outside)]})
    assert sample.images == (outside.resolve(),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["../outside.png"]}, r"images\.0: seen '\.\./outside\.png', expected a file beneath"),
        ({"images": ["images/../../outside.png"]}, "expected a file beneath"),
        ({"images": ["link.png"]}, r"seen 'link\.png', which leads out"),
        ({"images": ["https://example.org/a.png"]}, "expected a file beneath"),
        ({"images": ["file:///etc/hosts"]}, "expected a file beneath"),
        ({"images": ["images"]}, "expected a file that exists"),
        ({"images": ["none.png"]}, "expected a file that exists"),
        ({"images": ["b.png"], "question": "<image> or <image>?"}, "images: seen 1, expected 2, one for each <image>"),
        ({"question": ""}, "question: seen '', expected a text"),
        ({"id": ""}, "id: seen '', expected a text"),
        ({"answers": []}, "answers: seen none, expected a right one"),
        ({"answers": "4"}, "answers: seen '4', expected otherwise: Input should be a valid list"),
        ({"id": 1}, "id: seen '1', expected otherwise: Input should be a valid string"),
        ({"metric": "accuracy"}, "metric: seen 'accuracy', expected otherwise: Input should be 'exact'"),
        ({"answer": ["4"]}, "answer: seen an unknown key, expected one of id, images"),
        ({"history": [["only a question"]]}, r"history\.0: seen"),
        ({"max_tokens": 0}, "max_tokens: seen '0'"),
        ({"max_tiles": 13}, "max_tiles: seen '13'"),
        ({**CHOICE, "answers": ["C"]}, r"answers: seen \['C'\], expected letters of A, B"),
        ({**CHOICE, "answers": ["blue"]}, "expected letters of A, B"),
        ({"metric": "multiple_choice"}, "expected choices"),
        ({**CHOICE, "answers": ["AB"]}, "expected letters of A, B"),
        ({**CHOICE, "choices": ["x"] * 27}, "choices: seen 27, expected at most 26 for multiple_choice"),
        ({**CHOICE, "metric": "mathvista", "answers": ["blue"]}, r"answers: seen \['blue'\], expected letters of A, B"),
        ({**CHOICE, "metric": "mathvista", "answers": ["b"]}, "expected letters of A, B"),
        ({"metric": "substring", "answers": ["4", " "]}, r"answers: seen \['4', ' '\], expected none without a text"),
        ({"metric": "substring_formula", "answers": [""]}, "expected none without a text"),
        ({"metric": "open_answer", "answers": [""]}, "expected none without a text"),
        (
            {"metric": "mathvista", "answers": [""]},
            r"answers: seen \[''\], expected one of which normalising leaves some",
        ),
        ({"metric": "mathvista", "answers": ["the %."]}, r"answers: seen \['the %\.'\], expected one of which"),
        ({"images": ["x" * 300 + ".png"]}, r"images\.0: seen 'x+', which cannot be looked for \(File name too long\)"),
        ({"images": ["loop.png"]}, r"images\.0: seen 'loop\.png', which cannot be looked for \(Symlink loop"),
        ({"images": ["\ud800.png"]}, r"images\.0: seen .*, which cannot be looked for"),
        ({"choices": ["4", "5"]}, "choices: seen 2, expected none for exact"),
        ({"metric": "relaxed_accuracy", "answers": ["4", "5"]}, "answers: seen 2, expected 1 for relaxed_accuracy"),
    ],
)
def test_a_fault_is_told_with_line_seen_and_expected(folder: Path, change: dict[str, Any], message: str):
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=rf"task\.jsonl:2: .*{message}"):
        read(folder, {**LINE, "id": "0"}, LINE | change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "\ud800"),
        ("question", "2 + \udfff?"),
        ("history", [["2\udc00", "4"]]),
        ("answers", ["4", "\ud800"]),
        ("category", "\ud800"),
        ("system", "\ud800"),
    ],
)
def test_a_text_that_utf8_cannot_hold_is_refused(folder: Path, field: str, value: object):
    """JSON writes half a surrogate pair as an escape; no record of it could be written."""
    with pytest.raises(
        UserError, match=rf"task\.jsonl:1: {field}: seen half a surrogate pair \('\\u.*whole characters"
    ):
        read(folder, LINE | {field: value})
    with pytest.raises(UserError, match=r"task\.jsonl:1: choices: seen half a surrogate pair"):
        read(folder, LINE | CHOICE | {"choices": ["red", "\ud800"]})


def test_an_image_whose_name_utf8_cannot_hold_is_refused(folder: Path):
    (folder / "\udcff.png").write_bytes(b"png")
    with pytest.raises(UserError, match=r"task\.jsonl:1: images: seen half a surrogate pair \('\\udcff'\)"):
        read(folder, LINE | {"images": ["\udcff.png"]})
    assert read(folder, LINE | {"question": "\U0001f600"})[0].question == "\U0001f600", "a whole pair is a character"


def test_an_image_that_may_not_be_looked_at_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(UserError, match=r"images\.0: seen 'b\.png', which cannot be looked for \(Permission denied\)"):
        read(folder, LINE | {"images": ["b.png"]})


def test_mathvista_takes_a_letter_with_choices_and_a_text_without(folder: Path):
    letter, text = read(
        folder, {**LINE, "id": "a", **CHOICE, "metric": "mathvista"}, LINE | {"metric": "mathvista", "answers": ["4.5"]}
    )
    assert (letter.answers, text.answers) == (("B",), ("4.5",))


def test_a_missing_key_is_named(folder: Path):
    with pytest.raises(UserError, match=r"task\.jsonl:1: metric: seen nothing, expected a value"):
        read(folder, {key: value for key, value in LINE.items() if key != "metric"})


def test_every_bad_line_is_told_at_once(folder: Path):
    with pytest.raises(UserError, match="3 faults in the task") as raised:
        read(folder, "{", "[]", LINE, LINE)
    text = str(raised.value)
    assert "task.jsonl:1: seen no JSON" in text
    assert "task.jsonl:2: seen list, expected an object" in text
    assert "task.jsonl:4: id: seen '1' a second time" in text


def test_a_file_without_a_sample_or_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="the task is empty"):
        read(folder, "", " ")
    with pytest.raises(UserError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'"\xe4"')
    with pytest.raises(UserError, match="cannot be read"):
        read_tasks(tmp_path / "latin.jsonl")
