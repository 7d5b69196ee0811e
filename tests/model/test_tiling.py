"""Images are cut as the released load_image does it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvlm_trt.errors import RequestError
from nvlm_trt.model.tiling import cut_tiles, most_tiles, plan_grid, tile_tags


@pytest.mark.parametrize(
    ("size", "at_six", "at_twelve"),
    [
        ((448, 448), (1, 1), (1, 1)),
        ((634, 634), (2, 2), (2, 2)),
        ((633, 633), (1, 1), None),
        ((1024, 768), (3, 2), (4, 3)),
        ((640, 480), (3, 2), (4, 3)),
        ((1920, 1080), (2, 1), (4, 2)),
        ((1280, 720), (2, 1), (4, 2)),
        ((500, 400), (1, 1), (4, 3)),
        ((1000, 400), (3, 1), (5, 2)),
        ((1654, 2339), (2, 3), (2, 3)),
        ((1200, 800), (3, 2), (3, 2)),
    ],
)
def test_the_grids_of_known_sizes(
    size: tuple[int, int], at_six: tuple[int, int], at_twelve: tuple[int, int] | None
) -> None:
    for max_tiles, expected in ((6, at_six), (12, at_twelve)):
        if expected is not None:
            grid = plan_grid(*size, max_tiles=max_tiles, tile_size=448)
            assert (grid.columns, grid.rows) == expected


sides = st.integers(1, 20_000)


@given(width=sides, height=sides, max_tiles=st.integers(1, 12), tile_size=st.sampled_from([56, 112, 448]))
@settings(max_examples=500)
def test_any_size_gives_the_nearest_ratio_and_never_two_tiles(
    width: int, height: int, max_tiles: int, tile_size: int
) -> None:
    grid = plan_grid(width, height, max_tiles=max_tiles, tile_size=tile_size)
    assert 1 <= grid.columns * grid.rows <= max_tiles
    assert grid.num_tiles != 2
    assert grid.num_tiles == 1 or grid.num_tiles == grid.columns * grid.rows + 1
    distances = {
        (columns, rows): abs(width / height - columns / rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if columns * rows <= max_tiles
    }
    nearest = min(distances.values())
    assert distances[grid.columns, grid.rows] == nearest
    # Among the equally near ones, ascending in area: the last with more than half its pixels, or the first.
    equal = sorted((pair for pair in distances if distances[pair] == nearest), key=lambda pair: pair[0] * pair[1])
    roomy = [pair for pair in equal[1:] if width * height > 0.5 * tile_size**2 * pair[0] * pair[1]]
    assert (grid.columns, grid.rows) == (roomy[-1] if roomy else equal[0])


def test_tags_number_the_tiles_and_end_with_the_thumbnail() -> None:
    assert tile_tags(1) == ("<tile_global_thumbnail>",)
    assert tile_tags(3) == ("<tile_1>", "<tile_2>", "<tile_global_thumbnail>")
    assert tile_tags(13)[-2:] == ("<tile_12>", "<tile_global_thumbnail>")


def test_tiles_are_row_major_crops_of_the_resized_image_and_the_thumbnail_comes_last(
    photographs: dict[str, Image.Image],
) -> None:
    image = photographs["coffee"]
    grid = plan_grid(*image.size, max_tiles=6, tile_size=112)
    assert (grid.columns, grid.rows) == (3, 2)
    tiles = cut_tiles(image, grid, 112)
    assert tiles.shape == (7, 112, 112, 3)
    assert tiles.dtype == np.uint8
    resized = image.resize((336, 224), Image.Resampling.BICUBIC)
    for number in range(6):
        left, top = number % 3 * 112, number // 3 * 112
        assert np.array_equal(tiles[number], np.asarray(resized.crop((left, top, left + 112, top + 112))))
    assert np.array_equal(tiles[6], np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)))


def test_boxes_divide_the_image_row_by_row_and_the_thumbnail_shows_it_all() -> None:
    boxes = plan_grid(600, 400, max_tiles=6, tile_size=112).boxes(600, 400)
    cut = [(left, top, left + 200, top + 200) for top in (0, 200) for left in (0, 200, 400)]
    assert boxes == (*cut, (0, 0, 600, 400))
    assert plan_grid(90, 90, max_tiles=1, tile_size=112).boxes(90, 90) == ((0, 0, 90, 90),)


def test_a_border_of_tiles_may_lie_within_a_pixel() -> None:
    grid = plan_grid(301, 100, max_tiles=3, tile_size=112)
    assert [box[0] for box in grid.boxes(301, 100)] == [0, 301 / 3, 602 / 3, 0]


def test_without_thumbnails_in_the_model_there_is_none() -> None:
    assert plan_grid(896, 448, max_tiles=6, tile_size=448, use_thumbnail=False).num_tiles == 2


@pytest.mark.parametrize("max_tiles", [0, 13, -1])
def test_a_tile_limit_out_of_range_is_refused(max_tiles: int) -> None:
    with pytest.raises(RequestError, match="1 to 12"):
        plan_grid(448, 448, max_tiles=max_tiles, tile_size=448)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(RequestError, match="no pixels"):
        plan_grid(0, 448, max_tiles=6, tile_size=448)


@given(max_tiles=st.integers(1, 12), use_thumbnail=st.booleans())
def test_no_image_has_more_tiles_than_the_most_and_some_image_has_them(max_tiles: int, use_thumbnail: bool) -> None:
    most = most_tiles(max_tiles, use_thumbnail=use_thumbnail)
    sizes = [(448 * columns, 448 * rows) for columns in range(1, 13) for rows in range(1, 13)]
    grids = [plan_grid(*size, max_tiles=max_tiles, tile_size=448, use_thumbnail=use_thumbnail) for size in sizes]
    assert max(grid.num_tiles for grid in grids) == most
