"""Scenes: answers follow from what was drawn, equal seeds draw equal pictures, the test shows what is unseen."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from nvlm_trt.miniature import scenes
from nvlm_trt.miniature.assets import Split, fonts, photographs, words
from nvlm_trt.miniature.canvas import COLOURS, MIN_CONTRAST, SHAPES, luma
from nvlm_trt.miniature.layouts import is_held_back
from nvlm_trt.miniature.questions import PLACES
from nvlm_trt.miniature.scenes import Example, Scene
from nvlm_trt.model.tiling import plan_grid

TILE = 112
SEEDS = range(25)


def drawn(scene: Scene, seed: int, split: Split = "train") -> Example:
    return scene(np.random.default_rng([5, seed]), split, TILE)


def written(example: Example, picture: int = 0) -> str:
    return "".join(glyph.char for glyph in example.pictures[picture].glyphs)


@pytest.mark.parametrize("scene", [scenes.loose, *(scene for scene, _ in scenes.SCENES)])
def test_equal_seeds_give_equal_pictures_and_questions(scene: Scene) -> None:
    first, again, other = drawn(scene, 1), drawn(scene, 1), drawn(scene, 2)
    assert first.turns == again.turns
    assert [a.image.tobytes() for a in first.pictures] == [b.image.tobytes() for b in again.pictures]
    assert first.turns != other.turns


@pytest.mark.parametrize("scene", [scenes.loose, *(scene for scene, _ in scenes.SCENES)])
def test_a_picture_is_cut_into_the_grid_that_it_was_drawn_for(scene: Scene) -> None:
    for seed in SEEDS:
        for picture in drawn(scene, seed).pictures:
            grid = plan_grid(*picture.size, max_tiles=6, tile_size=TILE)
            assert (grid.columns, grid.rows) == (picture.columns, picture.rows)


def test_counts_colours_shapes_and_places_are_those_of_the_marks() -> None:
    checked = Counter()
    for seed in range(80):
        example = drawn(scenes.objects, seed)
        items = example.pictures[0].items
        width, height = example.pictures[0].size
        places = [PLACES[int(3 * item.y / height) * 3 + int(3 * item.x / width)] for item in items]
        for turn in example.turns:
            words_said = turn.question.rstrip("?").split()
            if turn.question == "How many shapes are there?":
                assert turn.answer == str(len(items))
            elif turn.category == "colour":
                assert [item.colour for item in items if item.shape == words_said[-1]] == [turn.answer]
            elif turn.question.startswith(("Which shape is", "What is")):
                assert [item.shape for item in items if item.colour == words_said[-1]] == [turn.answer]
            elif turn.question.startswith("Where is the"):
                named = [
                    place
                    for item, place in zip(items, places, strict=True)
                    if item.shape == words_said[-1] and (len(words_said) == 4 or item.colour == words_said[-2])
                ]
                assert named == [turn.answer]
            else:
                continue
            checked[turn.category] += 1
    assert min(checked[name] for name in ("colour", "shape", "position", "count")) > 10


def test_loose_shapes_are_counted_and_never_lie_where_the_sealed_test_has_its_own() -> None:
    close = 0
    for seed in range(80):
        example = drawn(scenes.loose, seed)
        (picture,) = example.pictures
        for turn in example.turns:
            if turn.question == "How many shapes are there?":
                assert turn.answer == str(len(picture.items))
            assert turn.category in ("colour", "shape", "count"), "there are no places in it"
        assert not any(is_held_back(item.x / picture.size[0], item.y / picture.size[1]) for item in picture.items)
        for one, other in itertools.combinations(picture.items, 2):
            apart = np.hypot(one.x - other.x, one.y - other.y) / (one.radius + other.radius)
            assert apart > 0.65
            close += apart < 1
    assert close > 10


def test_the_sealed_test_has_all_its_shapes_where_training_has_none() -> None:
    for seed in range(20):
        (picture,) = drawn(scenes.objects, seed, "test").pictures
        assert all(is_held_back(item.x / picture.size[0], item.y / picture.size[1]) for item in picture.items)
        (picture,) = drawn(scenes.objects, seed, "train").pictures
        assert not any(is_held_back(item.x / picture.size[0], item.y / picture.size[1]) for item in picture.items)


def test_signs_are_read_as_written() -> None:
    for seed in SEEDS:
        example = drawn(scenes.signs, seed)
        for turn in example.turns:
            if turn.category == "ocr":
                assert turn.answer in written(example)


def test_a_tiny_number_is_too_small_for_the_thumbnail_and_lies_within_one_tile() -> None:
    for seed in SEEDS:
        example = drawn(scenes.tiny, seed)
        (picture,) = example.pictures
        (answer,) = [turn.answer for turn in example.turns if turn.category == "tiny"]
        assert answer == written(example)
        width, height = picture.size
        glyphs = picture.glyphs
        advance, tall = glyphs[0].advance * TILE / width, glyphs[0].height * TILE / height
        assert advance < 5.5 or tall < 5  # the thumbnail of a wide picture is narrow, of a tall one flat
        assert tall < 7
        columns = {int(glyph.x * picture.columns / width) for glyph in glyphs}
        rows = {int(glyph.y * picture.rows / height) for glyph in glyphs}
        assert len(columns) == len(rows) == 1


def test_the_highest_bar_has_the_largest_value() -> None:
    for seed in SEEDS:
        example = drawn(scenes.chart, seed)
        bars = example.pictures[0].items
        tops = [bar.y for bar in bars]  # all stand on one line, so the middle of the highest lies highest
        letters = [glyph.char for glyph in example.pictures[0].glyphs if glyph.char.isalpha()]
        for turn in example.turns:
            if turn.question == "Which bar is the highest?":
                assert turn.answer == letters[int(np.argmin(tops))]


def test_follow_ups_lean_on_the_first_turn() -> None:
    for seed in SEEDS:
        first, *rest = drawn(scenes.follow_up, seed).turns
        assert rest
        assert first.category != "follow-up"
        assert {turn.category for turn in rest} == {"follow-up"}


def test_sums_are_right() -> None:
    for seed in SEEDS:
        for turn in drawn(scenes.arithmetic, seed).turns:
            left, operator, right = turn.question.removeprefix("What is ").rstrip("?").split()
            expected = int(left) + int(right) if operator == "plus" else int(left) - int(right)
            assert turn.answer == str(expected)


def test_the_sealed_split_shows_fonts_words_and_photographs_that_training_has_not_seen() -> None:
    assert not set(fonts("train")) & set(fonts("test"))
    assert not set(words("train")) & set(words("test"))
    assert len(words("test")) > 50
    seen = {picture.tobytes() for picture in photographs("train")}
    assert not seen & {picture.tobytes() for picture in photographs("test")}
    assert set(fonts("validation")) < set(fonts("train"))


def test_text_stands_out_from_what_lies_under_it() -> None:
    grey = np.random.default_rng(3)
    for seed in SEEDS:
        canvas = scenes.blank(1, 1, TILE, "train", np.random.default_rng(seed))
        chosen = canvas.readable(60, 60, 10, grey, ("black", "white"))
        base = luma(canvas.under(60, 60, 10))
        contrast = {name: abs(luma(COLOURS[name]) - base) for name in ("black", "white")}
        assert contrast[chosen] > MIN_CONTRAST or contrast[chosen] == max(contrast.values())


def test_every_shape_and_place_is_asked_for() -> None:
    answers = Counter(
        turn.answer for seed in range(150) for turn in drawn(scenes.objects, seed).turns if turn.category != "count"
    )
    assert set(SHAPES) <= set(answers)
    assert set(PLACES) <= set(answers)


def test_dense_pictures_of_any_seed_can_be_drawn_and_hide_nothing() -> None:
    for seed in range(40):
        canvas = scenes.dense(np.random.default_rng([6, seed]), "train", TILE)
        boxes = [(glyph.x, glyph.y, glyph.advance / 2, glyph.height / 2) for glyph in canvas.glyphs]
        boxes += [(item.x, item.y, item.radius, item.radius) for item in canvas.items]
        x, y, across, down = np.array(boxes).T
        apart = np.maximum(
            np.abs(x[:, None] - x) / (across[:, None] + across), np.abs(y[:, None] - y) / (down[:, None] + down)
        )
        assert (apart[~np.eye(len(boxes), dtype=bool)] > 0.85).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sealed_split_lays_things_out_where_training_never_does(split: Split) -> None:
    for seed in SEEDS:
        canvas = scenes.objects(np.random.default_rng([9, seed]), split, TILE).pictures[0]
        width, height = canvas.size
        for item in canvas.items:
            for place in (item.x / width, item.y / height):
                off_place = abs(place - (int(place * 3) + 0.5) / 3)
                assert off_place <= 0.05 if split == "train" else 0.05 <= off_place <= 0.075
