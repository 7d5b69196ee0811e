"""Bicubic resizing straight into tiles: by a compiled kernel where there is one, by Pillow where there is none.

The pixels are the same, bit for bit: the released preprocessing *is* Pillow's resize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np
from PIL import Image

from nvlm_trt.model.pixels import BYTES_PER_PIXEL, Pixels, copied_pixels, shared_pixels
from nvlm_trt.model.resize_kernel import Kernel, Tiles, kernel_status

BAND_ROWS = 64
"""Rows of a resized image that are one thread's task. Rows of the source that two tasks need are worked on twice."""

PIECE_BYTES = 4 << 20
"""Memory of a piece of an image that has to be copied: little enough for a cache."""


def resize_into(image: Image.Image, targets: Sequence[Tiles], pool: Executor | None = None) -> None:
    """Resize an RGB image to each of the targets' sizes with Pillow's bicubic filter and its antialiasing.

    Args:
        image: The image.
        targets: Where to write; an aspect ratio is not kept.
        pool: Threads that share the work; None does it all in this one.
    """
    kernel = kernel_status().kernel
    tasks: Iterator[Callable[[], None]] = (
        (partial(resize_with_pillow, image, tiles) for tiles in targets)
        if kernel is None
        else _kernel_tasks(kernel, image, targets, split=pool is not None)
    )
    for _ in map(_call, tasks) if pool is None else pool.map(_call, tasks):
        pass


def resize_with_pillow(image: Image.Image, tiles: Tiles) -> None:
    """As `resize_into`, by Pillow itself."""
    rows, columns, height, width, _ = tiles.shape
    resized = np.asarray(image.resize((columns * width, rows * height), Image.Resampling.BICUBIC))
    tiles[...] = resized.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


def _call(task: Callable[[], None]) -> None:
    task()


def _kernel_tasks(
    kernel: Kernel, image: Image.Image, targets: Sequence[Tiles], *, split: bool
) -> Iterator[Callable[[], None]]:
    image.load()
    pixels = shared_pixels(image)
    for tiles in targets:
        rows = tiles.shape[0] * tiles.shape[2]
        step = _piece_rows(image, rows) if pixels is None else BAND_ROWS if split else rows
        for start in range(0, rows, step):
            yield partial(_resize_band, kernel, image, pixels, tiles, range(start, min(start + step, rows)))


def _piece_rows(image: Image.Image, new_height: int) -> int:
    """Rows of the resized image that take about `PIECE_BYTES` of the source, at most a band of them."""
    ratio = image.height / new_height
    source_rows = PIECE_BYTES / (image.width * BYTES_PER_PIXEL) - 4 * max(ratio, 1)
    return max(1, min(BAND_ROWS, int(source_rows / ratio)))


def _resize_band(kernel: Kernel, image: Image.Image, pixels: Pixels | None, tiles: Tiles, band: range) -> None:
    if pixels is not None:
        kernel.run(pixels, range(image.height), image.size, tiles, band)
        return
    rows = kernel.window(image.height, tiles.shape[0] * tiles.shape[2], band)
    piece = image.crop((0, rows.start, image.width, rows.stop))
    kernel.run(shared_pixels(piece) or copied_pixels(piece), rows, image.size, tiles, band)
