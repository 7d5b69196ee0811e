"""What holds for any bytes that call themselves an image: they are read within limits, or refused in plain words."""

from __future__ import annotations

import resource
import time
import zlib
from typing import Final

from PIL import Image

from nvlm_trt.errors import ImageRejected
from nvlm_trt.gateway.errors import OUR_FAULT, plain
from nvlm_trt.model.image import ImageLimits, read_image, read_size
from nvlm_trt.model.tiling import plan_grid, tile_image
from nvlm_trt.serving.images import image_file

LIMITS: Final = ImageLimits(max_bytes=1 << 18, max_pixels=400_000, max_side=4_000, min_side=2)
"""Small, so that thousands of images can be tried and memory that grows is seen."""

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
TILE: Final = 112
MOST_TILES: Final = 6
MOST_SECONDS: Final = 5.0
"""Of processor time; the largest image within the limits takes a hundredth of it."""

MOST_GROWTH: Final = 64 << 20
"""Bytes by which the largest resident set may grow in one call; an image within the limits needs a sixth of it."""


def check(data: bytes) -> None:
    """One input: a byte that says in which form the rest comes, and the file.

    Raises:
        AssertionError: something does not hold.
    """
    if not data:
        return
    form, rest = data[0], data[1:]
    began, peak = time.process_time(), _peak()
    _read(with_true_checksums(rest) if form & 4 else rest, inline=bool(form & 1), upright=bool(form & 2))
    assert time.process_time() - began < MOST_SECONDS, "an image took too long"
    assert _peak() - peak < MOST_GROWTH, "an image took too much memory"


def with_true_checksums(file: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them: else whatever chance changes is refused for that."""
    if not file.startswith(SIGNATURE):
        return file
    out, place = SIGNATURE, len(SIGNATURE)
    while place + 12 <= len(file):
        length = int.from_bytes(file[place : place + 4])
        body = file[place + 4 : place + 8 + length]
        out += file[place : place + 4] + body + zlib.crc32(body).to_bytes(4)
        place += 12 + length
    return out + file[place:]


def _read(field: bytes, *, inline: bool, upright: bool) -> None:
    try:
        file = image_file(b"data:image/png;base64," + field if inline else field, LIMITS.max_bytes)
        image = read_image(file, LIMITS, exif_orientation=upright)
    except ImageRejected as error:
        refusal = str(error)
    else:
        _compare(image, file, upright=upright)
        return
    assert plain(refusal) != OUR_FAULT, f"a refusal tells too much: {refusal}"


def _compare(image: Image.Image, file: bytes, *, upright: bool) -> None:
    width, height = image.size
    assert image.mode == "RGB"
    assert width * height <= LIMITS.max_pixels
    assert LIMITS.min_side <= min(image.size)
    assert max(image.size) <= LIMITS.max_side
    assert read_size(file, LIMITS, exif_orientation=upright) == image.size, "it was planned in another size"
    grid = plan_grid(width, height, max_tiles=MOST_TILES, tile_size=TILE)
    tiles = tile_image(image, max_tiles=MOST_TILES, tile_size=TILE, use_thumbnail=True)
    assert tiles.shape == (grid.num_tiles, TILE, TILE, 3)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
