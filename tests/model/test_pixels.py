"""Pixels are read where Pillow keeps them, if they lie there in one run."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
from PIL import Image

from nvlm_trt.model.pixels import Pixels, copied_pixels, keep_image_memory, shared_pixels


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def read(pixels: Pixels, width: int, height: int) -> np.ndarray:
    memory = (ctypes.c_uint8 * (width * height * 4)).from_address(pixels.address)
    return np.ctypeslib.as_array(memory).reshape(height, width, 4)[..., :3]


def test_both_ways_give_the_pixels_and_outlive_the_image() -> None:
    image = picture(21, 10)
    expected = np.asarray(image).copy()
    shared, copied = shared_pixels(image), copied_pixels(image)
    del image
    assert shared is not None
    assert np.array_equal(read(shared, 21, 10), expected)
    assert np.array_equal(read(copied, 21, 10), expected)


def test_only_rgb_images_share_their_pixels() -> None:
    for mode in ("1", "L", "P", "RGBA", "F"):
        assert shared_pixels(Image.new(mode, (4, 4))) is None


def test_several_blocks_and_rows_with_gaps_are_not_shared(pillow_memory: None) -> None:
    Image.core.set_block_size(1 << 16)
    assert shared_pixels(picture(200, 200)) is None
    Image.core.set_block_size(1 << 24)
    Image.core.set_alignment(32)
    assert shared_pixels(picture(21, 10)) is None
    assert shared_pixels(picture(24, 10)) is not None


def test_kept_memory_makes_the_largest_image_one_block(pillow_memory: None) -> None:
    keep_image_memory(2, max_pixels=5_000_001)
    assert shared_pixels(Image.new("RGB", (2500, 2000))) is not None
    assert Image.core.get_blocks_max() == 2
    assert 5_000_001 * 4 <= Image.core.get_block_size() < 5_100_000 * 4


FREED = """
from nvlm_trt.model.pixels import give_memory_back
def held():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = held()
freed, above = [bytearray(b"x" * 65536) for _ in range(2000)], bytearray(100_000)
del freed
kept = held() - before
give_memory_back()
print(kept, held() - before)
"""


def test_memory_that_was_freed_below_something_that_lives_can_be_given_back():
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 100  # MiB of 125
    assert left < 10
