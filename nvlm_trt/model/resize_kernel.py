"""The compiled resizing kernel: loaded once, tried against the installed Pillow, and not used if one byte differs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from nvlm_trt.model.pixels import BYTES_PER_PIXEL, Pixels, copied_pixels
from nvlm_trt.model.resize_build import LIBRARY, source_digest

Tiles = npt.NDArray[np.uint8]
"""uint8 [rows, columns, height, width, 3], contiguous: an image cut into a grid."""

Order = Callable[[int, int, int, int], bool]
"""Whether Pillow takes the vertical pass first, by width, height, new width and new height. Both passes round."""


def never(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Pillow 12.0 and 12.1 always begin with the horizontal pass."""
    return False


def when_tall(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Pillow 12.2 and 12.3 begin with the vertical pass where an image is very tall and loses height."""
    return height > 100 * width and new_height < height


def when_height_shrinks_most(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Pillow 13 begins with the vertical pass where the height loses more than twice what the width loses."""
    return height > new_height and height - new_height > 2 * (width - new_width)


ORDERS: dict[str, Order] = {
    "12.0": never,
    "12.1": never,
    "12.2": when_tall,
    "12.3": when_tall,
    "13.0": when_height_shrinks_most,
}
"""By Pillow's version. Each was compared with that Pillow over thousands of shapes; for another one Pillow resizes."""

PROBES = (
    *((37, 29, 15, 11), (24, 61, 20, 9), (61, 24, 9, 20), (9, 13, 33, 40), (30, 40, 45, 7), (40, 30, 7, 45)),
    *((2, 230, 30, 90), (230, 2, 90, 30), (1, 120, 6, 40)),
)
"""Width, height, new width, new height: they tell the orders apart, and builds of Pillow that compute otherwise."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel, and the order of passes that it takes."""

    library: ctypes.CDLL
    order: Order

    def window(self, height: int, new_height: int, band: range) -> range:
        """The rows of an image of `height` that rows `band` of the resized one, of `new_height`, are made of."""
        first, end = ctypes.c_int(), ctypes.c_int()
        self.library.nvlm_resize_window(height, new_height, band.start, band.stop, first, end)
        return range(first.value, end.value)

    def run(self, pixels: Pixels, rows: range, size: tuple[int, int], tiles: Tiles, band: range) -> None:
        """Write rows of the resized image; other threads run meanwhile.

        Args:
            pixels: Rows of the image.
            rows: Which rows they are: those of `window` at least.
            size: Width and height of the whole image.
            tiles: Where to write.
            band: Rows of the resized image.

        Raises:
            ValueError: shapes, or rows, do not fit together.
            MemoryError: there is no memory to work in.
        """
        count, columns, height, width, channels = tiles.shape
        new_height = count * height
        fits = tiles.dtype == np.uint8 and channels == 3 and tiles.flags.c_contiguous and tiles.flags.writeable
        inside = 0 <= band.start < band.stop <= new_height and 0 <= rows.start < rows.stop <= size[1]
        if not fits or not inside or min(*size, *tiles.shape) < 1 or band.step != 1 or rows.step != 1:
            raise ValueError(f"{rows} of an image of {size} cannot become {band} of tiles {tiles.shape}")
        state = self.library.nvlm_resize(
            pixels.address, size[0] * BYTES_PER_PIXEL, rows.start, rows.stop, *size, tiles.ctypes.data,
            width, height, columns, new_height, band.start, band.stop,
            self.order(*size, width * columns, new_height),
        )  # fmt: skip
        if state == 1:
            raise MemoryError("no memory to resize an image in")
        if state:
            raise ValueError(f"{rows} of an image of {size} are not all of what {band} are made of")


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """Whether images are resized by the kernel, and if not, why."""

    kernel: Kernel | None
    reason: str = ""


@cache
def kernel_status() -> KernelStatus:
    """The kernel that this process uses."""
    return load_kernel(LIBRARY)


def load_kernel(library: Path) -> KernelStatus:
    """Load a kernel and try it."""
    if not library.is_file():
        return KernelStatus(None, "it was not compiled when nvlm-trt was installed")
    try:
        loaded = _declared(ctypes.CDLL(str(library)))
    except (OSError, AttributeError):
        return KernelStatus(None, "its library cannot be loaded")
    if loaded.nvlm_resize_source().decode() != source_digest():
        return KernelStatus(None, "it was compiled from another source: install nvlm-trt again")
    if not loaded.nvlm_resize_usable():
        return KernelStatus(None, "the CPU has no AVX2")
    order = ORDERS.get(".".join(PIL.__version__.split(".")[:2]))
    if order is None:
        return KernelStatus(None, f"it was not compared with Pillow {PIL.__version__}")
    kernel = Kernel(loaded, order)
    return (
        KernelStatus(kernel) if _equals_pillow(kernel) else KernelStatus(None, "the installed Pillow differs from it")
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, address = ctypes.c_int, ctypes.c_void_p
    library.nvlm_resize_source.restype = ctypes.c_char_p
    library.nvlm_resize_usable.restype = number
    library.nvlm_resize_window.argtypes = [number] * 4 + [ctypes.POINTER(number)] * 2
    library.nvlm_resize_window.restype = None
    library.nvlm_resize.argtypes = [address, ctypes.c_ssize_t, *[number] * 4, address, *[number] * 7]
    library.nvlm_resize.restype = number
    return library


def _equals_pillow(kernel: Kernel) -> bool:
    random = np.random.default_rng(0)
    for width, height, new_width, new_height in PROBES:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        tiles = np.empty((1, 1, new_height, new_width, 3), np.uint8)
        kernel.run(copied_pixels(image), range(height), image.size, tiles, range(new_height))
        expected = np.asarray(image.resize((new_width, new_height), Image.Resampling.BICUBIC))
        if not np.array_equal(tiles[0, 0], expected):
            return False
    return True
