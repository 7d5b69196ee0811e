"""Labels of patches: each mark lies in the patch where it is seen, at the size at which the tile shows it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.miniature.canvas import Canvas, Glyph, Item
from nvlm_trt.miniature.labels import CHARACTERS, SHAPE_NAMES, UNKNOWN, label
from nvlm_trt.miniature.scenes import dense


def canvas(columns: int = 1, rows: int = 1, scale: int = 1) -> Canvas:
    image = Image.new("RGB", (columns * 112 * scale, rows * 112 * scale), (200, 200, 200))
    return Canvas(image, columns, rows, scale, "train")


def test_a_character_is_labelled_in_the_half_of_the_patch_where_its_middle_is() -> None:
    picture = canvas(scale=2)
    picture.glyphs.append(Glyph("K", x=2 * 37, y=2 * 20, advance=20, height=24, colour="red", place=3))
    labels = label(picture, 112, 14)
    assert labels.characters.shape == (1, 8, 8, 2)
    assert np.argwhere(labels.characters).tolist() == [[0, 1, 2, 1]]  # 37 is in patch 28..42, right of its middle
    assert labels.characters[0, 1, 2, 1] == 1 + CHARACTERS.index("K")
    assert labels.ordinals[0, 1, 2, 1] == 4


def test_what_the_thumbnail_shows_too_small_is_neither_a_character_nor_nothing() -> None:
    picture = canvas(3, 2)
    picture.glyphs.append(Glyph("7", x=150, y=50, advance=9, height=12, colour="black", place=0))
    labels = label(picture, 112, 14)
    assert len(labels.tiles) == 7
    assert labels.characters[1].max() == 1 + CHARACTERS.index("7")  # the second tile
    assert sorted(np.unique(labels.characters[6])) == [UNKNOWN, 0]
    assert not labels.characters[[0, 2, 3, 4, 5]].any()


def test_an_object_is_labelled_in_its_tile_and_in_the_thumbnail() -> None:
    picture = canvas(2, 1)
    picture.items.append(Item("star", "blue", x=168, y=56, radius=20))
    labels = label(picture, 112, 14)
    star = 1 + SHAPE_NAMES.index("star")
    assert np.argwhere(labels.shapes == star).tolist() == [[1, 4, 4], [2, 4, 6]]


def test_characters_that_share_a_place_are_not_judged() -> None:
    picture = canvas()
    picture.glyphs += [
        Glyph(char, x=30 + step, y=30, advance=8, height=10, colour="red", place=step) for step, char in enumerate("AB")
    ]
    assert label(picture, 112, 14).characters[0, 2, 2, 0] == UNKNOWN


@pytest.mark.parametrize("seed", range(3))
def test_dense_pictures_are_full_of_characters(seed: int) -> None:
    labels = label(dense(np.random.default_rng(seed), "train", 112), 112, 14)
    assert (labels.characters > 0).sum() > 3 * len(labels.tiles)
