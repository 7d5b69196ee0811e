"""The memory of Pillow images: read without a copy where that can be (as Arrow data), and kept for the next images."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from PIL import Image

BYTES_PER_PIXEL = 4
"""Of an RGB image in Pillow's memory: the fourth byte is unused."""

PAGE_BYTES = 4096
"""What Pillow counts blocks of memory in."""

_ARRAY_NAME = b"arrow_array"
_core = Image.core  # type: ignore[attr-defined] # Pillow's documented place of the settings of its memory


class _ArrowArray(ctypes.Structure):
    """``struct ArrowArray`` of the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.POINTER(_ArrowArray)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True)
class Pixels:
    """RGBX pixels of an image, row by row without gaps; to be read only.

    Attributes:
        address: Of the first pixel; valid as long as this object lives.
        owner: What holds the memory.
    """

    address: int
    owner: object


def shared_pixels(image: Image.Image) -> Pixels | None:
    """The memory of an RGB image itself.

    Returns:
        None where it is not one run of rows: Pillow puts an image of more than 16 MiB (unless told otherwise) into
        several blocks, and can be told to align rows.
    """
    width, height = image.size
    if image.mode != "RGB" or (width * BYTES_PER_PIXEL) % _core.get_alignment():
        return None
    try:
        capsules = image.__arrow_c_array__()
    except ValueError:  # several blocks
        return None
    array = _ArrowArray.from_address(_capsule_pointer(capsules[1], _ARRAY_NAME))
    if (array.length, array.offset, array.n_children) != (width * height, 0, 1):
        return None
    bands = array.children[0].contents
    if (bands.length, bands.offset, bands.n_buffers) != (width * height * BYTES_PER_PIXEL, 0, 2):
        return None
    return Pixels(bands.buffers[1], capsules)


def copied_pixels(image: Image.Image) -> Pixels:
    """A copy of an RGB image's pixels."""
    copy = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8)
    return Pixels(copy.ctypes.data, copy)


def keep_image_memory(images: int, max_pixels: int) -> None:
    """Let Pillow keep the memory of images for the next ones, in this whole process.

    Memory that is new to a process costs it a third of the time of decoding a JPEG, or more. This is for a process that
    does little but read images: what they take at their worst, it goes on holding until smaller ones come. An image is
    one block then, too, which `shared_pixels` can read.

    Args:
        images: Images whose memory is kept, as many as are read at the same time; 0 keeps none.
        max_pixels: Pixels of the largest image.
    """
    pages = -(-max_pixels * BYTES_PER_PIXEL // PAGE_BYTES)
    _core.set_block_size(pages * PAGE_BYTES)
    _core.set_blocks_max(images)


def give_memory_back() -> None:
    """Have the C library give the memory of what was freed back to the system, where it can (glibc).

    Each thread that read a large image keeps it otherwise: freed blocks of 16 MiB count among those that are worth
    keeping.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
