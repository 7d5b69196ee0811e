"""What faster decoding would cost in pixels: Pillow's `draft` and `reducing_gap`, beside the exact tiles.

    python scripts/measure_lossy_decoding.py

Pictures are scikit-image's photographs: each enlarged to 12 megapixels and saved as JPEG (soft, as a photograph that is
larger than its lens is sharp), and the mosaic of `bench_preprocessing.py`, whose detail is as fine as its pixels.
Prints the share of bytes that differ, the mean and the greatest difference in levels of 255, and least CPU time.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from bench_preprocessing import PHOTOGRAPHS, SIZE, TILE, Tiles, encoded, grid_of, mosaic
from PIL import Image

from nvlm_trt.model.tiling import TileGrid, cut_tiles

ROUNDS = 5


def pictures() -> dict[str, bytes]:
    """JPEG files of 12 megapixels."""
    folder = Path(skimage.data.__file__).parent
    files = {"mosaic": encoded(mosaic(*SIZE))}
    for name in PHOTOGRAPHS:
        photograph = Image.open(folder / name).convert("RGB")
        scale = (SIZE[0] * SIZE[1] / (photograph.width * photograph.height)) ** 0.5
        size = round(photograph.width * scale), round(photograph.height * scale)
        files[Path(name).stem] = encoded(photograph.resize(size, Image.Resampling.BICUBIC))
    return files


def opened(data: bytes) -> tuple[Image.Image, TileGrid]:
    """An image before it is decoded, and the grid of its full size."""
    image = Image.open(io.BytesIO(data))
    return image, grid_of(image)


def exact(data: bytes) -> Tiles:
    """As the project does it."""
    image, grid = opened(data)
    return cut_tiles(image, grid, TILE)


def draft(data: bytes) -> Tiles:
    """Decoded at a half, a quarter or an eighth, as long as that is no smaller than the grid."""
    image, grid = opened(data)
    image.draft("RGB", (grid.columns * TILE, grid.rows * TILE))
    return cut_tiles(image, grid, TILE)


def reducing_gap(data: bytes) -> Tiles:
    """Whole pixels are averaged first, down to twice the size that is wanted."""
    image, grid = opened(data)
    sizes = [(grid.columns, grid.rows), (1, 1)]
    tiles = []
    for columns, rows in sizes if grid.thumbnail else sizes[:1]:
        size = (columns * TILE, rows * TILE)
        resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
        tiles.append(resized.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3))
    return np.concatenate(tiles)


def least_ms(run: Callable[[bytes], Tiles], data: bytes) -> float:
    """Least CPU time of several runs."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        run(data)
        times.append(time.process_time() - begun)
    return min(times) * 1e3


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| picture | way | bytes that differ | mean | greatest | CPU ms | exact |\n|---|---|---|---|---|---|---|")
    for name, data in pictures().items():
        expected, exact_ms = exact(data).astype(np.int16), least_ms(exact, data)
        for way in (draft, reducing_gap):
            difference = np.abs(way(data).astype(np.int16) - expected)
            print(
                f"| {name} | {way.__name__} | {np.mean(difference > 0):.0%} | {difference.mean():.2f} "
                f"| {difference.max()} | {least_ms(way, data):.0f} | {exact_ms:.0f} |"
            )


if __name__ == "__main__":
    main()
