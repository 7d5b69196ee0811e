"""Resized pixels are Pillow's own, bit for bit, whichever way they are made."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.model import resize
from nvlm_trt.model.pixels import copied_pixels, shared_pixels
from nvlm_trt.model.resize import resize_into
from nvlm_trt.model.resize_kernel import Kernel, KernelStatus, kernel_status

SHAPES_PER_SEED = 500


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    status = kernel_status()
    if status.kernel is None:
        pytest.skip(f"there is no resizing kernel: {status.reason}")
    return status.kernel


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise shows every wrong tap and, with its extremes, wrong clipping."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (height, width, 3), np.uint8)
    extremes = random.integers(0, 2, (height, width, 1), np.uint8) * 255
    return Image.fromarray(np.where(random.random((height, width, 1)) < 0.3, extremes, values).astype(np.uint8))


def resized(image: Image.Image, width: int, height: int, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
    tiles = np.empty((1, 1, height, width, 3), np.uint8)
    resize_into(image, [tiles], pool)
    return tiles[0, 0]


def expected(image: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def shapes(seed: int) -> Iterator[tuple[int, int, int, int]]:
    """Sides from 1 to 300, small ones as often as large ones; some axes keep their size."""
    random = np.random.default_rng(seed)
    for number in range(SHAPES_PER_SEED):
        width, height, new_width, new_height = (int(side) for side in np.exp(random.uniform(0, np.log(300), 4)).round())
        yield width, height, width if number % 5 == 0 else new_width, height if number % 7 == 0 else new_height


@pytest.mark.parametrize("seed", range(8))
def test_any_shape_is_resized_as_pillow_does_it(kernel: Kernel, seed: int) -> None:
    wrong = [
        shape
        for number, shape in enumerate(shapes(seed))
        if not np.array_equal(resized(image := noise(*shape[:2], seed=number), *shape[2:]), expected(image, *shape[2:]))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((4000, 1), (7, 1)),
        ((1, 4000), (1, 7)),
        ((4000, 2), (1, 1)),
        ((2, 4000), (1, 1)),
        ((5000, 3), (3, 500)),
        ((3, 5000), (500, 3)),
        ((2, 2), (1344, 896)),
        ((1999, 1001), (1344, 896)),
        ((1001, 1999), (896, 1344)),
        ((1344, 896), (1344, 896)),
        ((1344, 2000), (1344, 896)),
        ((2000, 896), (1344, 896)),
    ],
)
def test_long_narrow_large_and_unchanged_images(
    kernel: Kernel, size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    image = noise(*size)
    assert np.array_equal(resized(image, *new_size), expected(image, *new_size))


@pytest.mark.parametrize("size", [(2500, 2000), (2000, 2500), (6000, 700)])
def test_an_image_in_several_blocks_of_memory_is_resized_piece_by_piece(
    kernel: Kernel, pillow_memory: None, size: tuple[int, int]
) -> None:
    Image.core.set_block_size(1 << 22)
    image = noise(*size)
    assert shared_pixels(image) is None
    with ThreadPoolExecutor(3) as pool:
        for new_size in ((336, 224), (112, 448)):
            assert np.array_equal(resized(image, *new_size), expected(image, *new_size))
            assert np.array_equal(resized(image, *new_size, pool), expected(image, *new_size))


def test_aligned_rows_are_copied(kernel: Kernel, pillow_memory: None) -> None:
    Image.core.set_alignment(64)
    image = noise(101, 67)
    assert shared_pixels(image) is None
    assert np.array_equal(resized(image, 33, 200), expected(image, 33, 200))


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize("size", [(900, 700), (700, 900), (100, 80)])
def test_threads_write_the_same_tiles(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], with_kernel: bool
) -> None:
    if not with_kernel:
        monkeypatch.setattr(resize, "kernel_status", lambda: KernelStatus(None, "not wanted"))
    image = noise(*size)
    grids = [np.empty((2, 3, 112, 112, 3), np.uint8), np.empty((1, 1, 112, 112, 3), np.uint8)]
    with ThreadPoolExecutor(3) as pool:
        resize_into(image, grids, pool)
    whole = expected(image, 336, 224)
    for row in range(2):
        for column in range(3):
            tile = whole[row * 112 : row * 112 + 112, column * 112 : column * 112 + 112]
            assert np.array_equal(grids[0][row, column], tile)
    assert np.array_equal(grids[1][0, 0], expected(image, 112, 112))


def test_any_band_can_be_made_by_itself_from_its_window(kernel: Kernel) -> None:
    image = noise(150, 130)
    for width, height in ((60, 40), (60, 200), (400, 40), (150, 40), (60, 130)):
        whole = expected(image, width, height)
        for start in range(0, height, 7):
            band = range(start, min(start + 7, height))
            rows = kernel.window(image.height, height, band)
            piece = copied_pixels(image.crop((0, rows.start, image.width, rows.stop)))
            tiles = np.zeros((1, 1, height, width, 3), np.uint8)
            kernel.run(piece, rows, image.size, tiles, band)
            assert np.array_equal(tiles[0, 0, band.start : band.stop], whole[band.start : band.stop])
            outside = np.delete(tiles[0, 0], band, axis=0)
            assert not outside.any()


def test_the_kernel_refuses_what_does_not_fit(kernel: Kernel) -> None:
    image = noise(40, 30)
    pixels, rows, band = copied_pixels(image), range(30), range(16)
    good = np.empty((1, 2, 16, 10, 3), np.uint8)
    wrong_tiles = (good.astype(np.int16), good[..., :2], good[:, :, ::2], np.broadcast_to(good, good.shape), good[:0])
    for tiles in wrong_tiles:
        with pytest.raises(ValueError, match="cannot become"):
            kernel.run(pixels, rows, image.size, tiles, band)
    for wrong in (range(-1, 5), range(5, 5), range(17), range(0, 16, 2)):
        with pytest.raises(ValueError, match="cannot become"):
            kernel.run(pixels, rows, image.size, good, wrong)
    with pytest.raises(ValueError, match="cannot become"):
        kernel.run(pixels, range(31), image.size, good, band)
    with pytest.raises(ValueError, match="not all"):
        kernel.run(pixels, range(1, 30), image.size, good, band)
    with pytest.raises(ValueError, match="not all"):
        kernel.run(pixels, range(29), image.size, good, band)
