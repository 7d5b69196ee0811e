"""Folders of data sets: what counts as a text, and which file an image is."""

from __future__ import annotations

import math

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.adapters.folder import DataFolder, text, texts
from nvlm_trt.jsonl import FieldError


@pytest.mark.parametrize(("value", "expected"), [("x", "x"), ("", ""), (14, "14"), (5.5, "5.5"), (-0.25, "-0.25")])
def test_a_text_or_a_number_is_a_text(value, expected):
    assert text(value, "label") == expected
    assert texts(value, "label") == texts([value], "label") == (expected,)


@pytest.mark.parametrize("value", [None, True, False, math.nan, math.inf, {"a": 1}, ["a"], b"a"])
def test_what_is_neither_is_refused_and_not_spelled_out(value):
    with pytest.raises(FieldError, match=r"^label: seen .*, expected a text or a number$"):
        text(value, "label")
    with pytest.raises(FieldError, match=r"^label: seen .*, expected a text or a number$"):
        texts(["x", value], "label")


def test_files_behind_links_to_folders_are_found_and_a_loop_of_links_ends(data, write, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "parts").mkdir(parents=True)
    for name in ("parts/c.png", "notes.jsonl"):
        (elsewhere / name).write_bytes(b"")
    (elsewhere / "parts" / "back").symlink_to(data)
    (data / "linked").symlink_to(elsewhere)
    folder = DataFolder(data, data)
    assert folder.image("parts/c.png") == data / "linked/parts/c.png"
    assert folder.find_one("*.jsonl") == data / "linked/notes.jsonl"
    assert folder.has("*.jsonl")
    assert not folder.has("*.parquet")


def test_a_folder_that_a_link_leads_to_a_second_time_keeps_its_own_name(data, write):
    write("z/b/c.png")
    (data / "a").mkdir()
    (data / "a" / "link").symlink_to(data / "z")
    assert DataFolder(data, data).image("z/b/c") == DataFolder(data, data).image("c.png") == data / "z/b/c.png"


def test_an_image_lies_in_the_folders_that_its_name_has_or_in_as_many_as_are_asked_for(data, write):
    for file in ("x/b/c.png", "a/b/d.jpg", "e.png"):
        write(file)
    folder = DataFolder(data, data)
    assert folder.image("b/c.png") == folder.image("c.png") == folder.image("c") == data / "x/b/c.png"
    assert folder.image("a/b/c.png", folders=1) == folder.image("other/c.png", folders=0) == data / "x/b/c.png"
    assert folder.image("e.png", folders=1) == data / "e.png", "a name without folders asks for none"
    for name, folders in (("a/b/c.png", None), ("b/a/c.png", 1), ("d.png", 0), ("", 0), ("b", 0)):
        with pytest.raises(UserError, match=r"an image of the data set is missing; seen: .*; expected: a file"):
            folder.image(name, folders=folders)
