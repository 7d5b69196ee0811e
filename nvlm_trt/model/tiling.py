"""Dynamic tiling: how many tiles an image is cut into, in which grid, under which tags.

Source: load_image and dynamic_preprocess of the model card of nvidia/NVLM-D-72B (arXiv 2409.11402, section 3). This
module is the one home of tile counts and tag text.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from nvlm_trt.errors import RequestError
from nvlm_trt.model.config import MAX_TILES
from nvlm_trt.model.resize import resize_into

THUMBNAIL_TAG = "<tile_global_thumbnail>"

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in its pixels."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A grid of `columns` x `rows` tiles, row-major, and a thumbnail of the whole image last.

    An image of one tile has no separate thumbnail: it is its own. So there are 1 or 3 and more tiles, never 2 (unless
    the model's configuration switches thumbnails off).
    """

    columns: int
    rows: int
    thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Tiles in all, the thumbnail included."""
        return self.columns * self.rows + self.thumbnail

    @property
    def tags(self) -> tuple[str, ...]:
        """The text tag in front of each tile's visual tokens."""
        return tile_tags(self.num_tiles)

    def boxes(self, width: int, height: int) -> tuple[Box, ...]:
        """The part of an image of `width` x `height` pixels that each tile shows, the thumbnail (all of it) last.

        The image is stretched to the grid and cut there, so that a border of tiles may lie within a pixel.
        """
        xs = [width * column / self.columns for column in range(self.columns + 1)]
        ys = [height * row / self.rows for row in range(self.rows + 1)]
        tiles = [
            (xs[column], ys[row], xs[column + 1], ys[row + 1])
            for row in range(self.rows)
            for column in range(self.columns)
        ]
        return (*tiles, (0.0, 0.0, float(width), float(height))) if self.thumbnail else tuple(tiles)


def tile_tags(num_tiles: int) -> tuple[str, ...]:
    """Tags of `num_tiles` tiles: numbered from 1, the last one the global thumbnail (modeling_nvlm_d.py, chat())."""
    return (*(f"<tile_{number}>" for number in range(1, num_tiles)), THUMBNAIL_TAG)


def plan_grid(width: int, height: int, *, max_tiles: int, tile_size: int, use_thumbnail: bool = True) -> TileGrid:
    """The grid whose aspect ratio is nearest to the image's.

    Among grids that are equally near, a larger one is taken when the image has more than half its pixels. The
    comparison is done in Python floats with strict ``<``, as in the source: exact fractions differ on some sizes.

    Args:
        width: Image width in pixels.
        height: Image height in pixels.
        max_tiles: Most tiles of the grid, the thumbnail not counted; 1 to 12.
        tile_size: Side of a tile in pixels.
        use_thumbnail: Whether the model appends a thumbnail to grids of several tiles.

    Raises:
        RequestError: `max_tiles` is out of range, or the image has no pixels.
    """
    if not 1 <= max_tiles <= MAX_TILES:
        raise RequestError("max_tiles is out of range", seen=max_tiles, expected=f"1 to {MAX_TILES}")
    if width < 1 or height < 1:
        raise RequestError("the image has no pixels", seen=f"{width} x {height}")
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        distance = abs(aspect - columns / rows)
        roomy = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and roomy):
            best, best_distance = (columns, rows), distance
    return TileGrid(*best, thumbnail=use_thumbnail and best != (1, 1))


def most_tiles(max_tiles: int, *, use_thumbnail: bool = True) -> int:
    """Tiles of one image at most, its thumbnail included; arguments as `plan_grid`."""
    return TileGrid(max_tiles, 1, thumbnail=use_thumbnail and max_tiles > 1).num_tiles


def cut_tiles(
    image: Image.Image, grid: TileGrid, tile_size: int, pool: Executor | None = None
) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to the grid and cut it; the thumbnail is resized from the original image.

    Resizing is PIL's bicubic with its antialiasing, aspect ratio not kept: the source calls ``image.resize`` with its
    default filter.

    Args:
        image: An RGB image.
        grid: The grid of `plan_grid` for its size.
        tile_size: Side of a tile in pixels.
        pool: Threads to share the work with; None takes this one.

    Returns:
        uint8 [grid.num_tiles, tile_size, tile_size, 3], thumbnail last.
    """
    tile = (tile_size, tile_size, 3)
    tiles = np.empty((grid.num_tiles, *tile), np.uint8)
    cut = grid.columns * grid.rows
    targets = [tiles[:cut].reshape(grid.rows, grid.columns, *tile)]
    if grid.thumbnail:
        targets.append(tiles[cut:].reshape(1, 1, *tile))
    resize_into(image, targets, pool)
    return tiles


def tile_image(
    image: Image.Image,
    *,
    max_tiles: int,
    tile_size: int,
    use_thumbnail: bool = True,
    pool: Executor | None = None,
) -> npt.NDArray[np.uint8]:
    """The tiles of an RGB image, uint8 [tiles, tile_size, tile_size, 3].

    Arguments and errors as `plan_grid` and `cut_tiles`.
    """
    grid = plan_grid(*image.size, max_tiles=max_tiles, tile_size=tile_size, use_thumbnail=use_thumbnail)
    return cut_tiles(image, grid, tile_size, pool)


@cache
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) of at most `max_tiles` tiles, by area."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
