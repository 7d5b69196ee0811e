"""What a vision encoder can be asked about every patch of a tile: characters, their colour and place, shapes.

Labels are made from the marks of a picture, for its tiles and its thumbnail, so that the encoder learns each at the
size at which the model meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_trt.miniature.canvas import COLOURS, SHAPES, Canvas
from nvlm_trt.model.tiling import TileGrid, cut_tiles

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = (*SHAPES, "bar")
SLOTS = 2
"""Characters of a patch that are told apart: one centred in its left half, one in its right half."""
PLACES = 6
"""Places of a character in its text that are told apart; those beyond count as the last one."""
UNKNOWN = -100
"""The label of what is there but too small or too cut to be judged: torch ignores it."""
LEAST_ADVANCE, LEAST_HEIGHT = 5.5, 6.5
"""Pixels of a tile below which a character cannot be judged."""
MOST_HEIGHT = 38
"""Pixels of a tile above which a character is left to the thumbnail, where it is whole."""

Labels = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class TileLabels:
    """Labels of n tiles of p x p patches; 0 is nothing.

    Attributes:
        tiles: uint8 [n, s, s, 3].
        characters: int16 [n, p, p, SLOTS], 1 + index in CHARACTERS.
        ordinals: int16 [n, p, p, SLOTS], 1 + place of the character in its text.
        text_colours: int16 [n, p, p], 1 + index in COLOUR_NAMES, where a character is centred.
        shapes: int16 [n, p, p], 1 + index in SHAPE_NAMES, where an object is centred.
        object_colours: int16 [n, p, p], as text_colours.
    """

    tiles: npt.NDArray[np.uint8]
    characters: Labels
    ordinals: Labels
    text_colours: Labels
    shapes: Labels
    object_colours: Labels


def label(canvas: Canvas, tile: int, patch: int) -> TileLabels:
    """Cut a picture and label the patches of its tiles."""
    grid = TileGrid(canvas.columns, canvas.rows, thumbnail=canvas.columns * canvas.rows > 1)
    tiles = cut_tiles(canvas.image, grid, tile)
    side = tile // patch
    shape = (len(tiles), side, side)
    labels = TileLabels(
        tiles, *(np.zeros(s, np.int16) for s in ((*shape, SLOTS), (*shape, SLOTS), shape, shape, shape))
    )
    for index, x0, y0, across, down in _windows(canvas, grid, tile):
        _label_glyphs(labels, index, canvas, (x0, y0, across, down), tile, patch)
        _label_items(labels, index, canvas, (x0, y0, across, down), tile, patch)
    return labels


Window = tuple[float, float, float, float]
"""Offset in pixels of the resized picture, and its pixels to a pixel of the canvas, across and down."""


def _windows(canvas: Canvas, grid: TileGrid, tile: int) -> Iterator[tuple[int, float, float, float, float]]:
    width, height = canvas.size
    for number in range(grid.columns * grid.rows):
        column, row = number % grid.columns, number // grid.columns
        yield number, column * tile, row * tile, grid.columns * tile / width, grid.rows * tile / height
    if grid.thumbnail:
        yield grid.columns * grid.rows, 0, 0, tile / width, tile / height


def _label_glyphs(labels: TileLabels, index: int, canvas: Canvas, window: Window, tile: int, patch: int) -> None:
    x0, y0, across, down = window
    taken: set[tuple[int, int, int]] = set()
    for glyph in canvas.glyphs:
        x, y = glyph.x * across - x0, glyph.y * down - y0
        if not (0 <= x < tile and 0 <= y < tile):
            continue
        row, column, slot = int(y // patch), int(x // patch), int(x % patch * SLOTS // patch)
        advance, height = glyph.advance * across, glyph.height * down
        cut = min(x, tile - x) < advance * 0.3 or min(y, tile - y) < height * 0.3
        clear = advance >= LEAST_ADVANCE and LEAST_HEIGHT <= height <= MOST_HEIGHT and not cut
        known = clear and (row, column, slot) not in taken
        taken.add((row, column, slot))
        labels.characters[index, row, column, slot] = 1 + CHARACTERS.index(glyph.char) if known else UNKNOWN
        labels.ordinals[index, row, column, slot] = 1 + min(glyph.place, PLACES - 1) if known else UNKNOWN
        labels.text_colours[index, row, column] = 1 + COLOUR_NAMES.index(glyph.colour) if height >= 5 else UNKNOWN


def _label_items(labels: TileLabels, index: int, canvas: Canvas, window: Window, tile: int, patch: int) -> None:
    x0, y0, across, down = window
    for item in canvas.items:
        x, y = item.x * across - x0, item.y * down - y0
        if not (0 <= x < tile and 0 <= y < tile):
            continue
        row, column = int(y // patch), int(x // patch)
        reach = item.radius * 0.5
        cut = min(x, tile - x) < reach * across or min(y, tile - y) < reach * down
        labels.shapes[index, row, column] = UNKNOWN if cut else 1 + SHAPE_NAMES.index(item.shape)
        labels.object_colours[index, row, column] = 1 + COLOUR_NAMES.index(item.colour)
