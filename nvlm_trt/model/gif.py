"""How large a GIF's first frame is, from its header: Pillow makes room for it while it opens the file.

A frame may reach beyond the screen that the file names, and one that is to be disposed of is filled at once, up to 179
megapixels for a file of a hundred bytes. So it is measured before Pillow sees it. Read is what Pillow would read, its
leniency included (unknown bytes between blocks are skipped); what is damaged is left to it.
"""

from __future__ import annotations

import struct
from typing import Final

SIGNATURES: Final = (b"GIF87a", b"GIF89a")
SCREEN: Final = struct.Struct("<6sHHBBB")
FRAME: Final = struct.Struct("<HHHH")
EXTENSION, SEPARATOR, TRAILER, COMMENT = 0x21, 0x2C, 0x3B, 0xFE


def is_gif(data: bytes) -> bool:
    """Whether a file says that it is one."""
    return data.startswith(SIGNATURES)


def first_frame(data: bytes) -> tuple[int, int] | None:
    """Width and height of the screen and the first frame together; None where there is no whole frame header.

    Args:
        data: The bytes of a GIF file.
    """
    if len(data) < SCREEN.size:
        return None
    _, width, height, flags, _, _ = SCREEN.unpack_from(data)
    place = SCREEN.size + ((6 << (flags & 7)) if flags & 0x80 else 0)
    while place < len(data) and data[place] != TRAILER:
        kind, place = data[place], place + 1
        if kind == EXTENSION:
            place = _after_extension(data, place)
        elif kind == SEPARATOR:
            if place + FRAME.size > len(data):
                return None
            left, top, frame_width, frame_height = FRAME.unpack_from(data, place)
            return max(width, left + frame_width), max(height, top + frame_height)
    return None


def _after_extension(data: bytes, place: int) -> int:
    """Where the blocks of an extension end; `place` is that of its label."""
    label, place = data[place : place + 1], place + 1
    if data[place : place + 1] == b"\0" and label != bytes([COMMENT]):
        place += 1  # Pillow reads the first block by itself, and the others behind it even where it is the empty one
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
