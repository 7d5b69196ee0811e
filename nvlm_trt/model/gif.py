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
EXTENSION, SEPARATOR, TRAILER = 0x21, 0x2C, 0x3B
APPLICATION, COMMENT = b"\xff", b"\xfe"
LOOP: Final = b"NETSCAPE2.0"


def is_gif(data: bytes) -> bool:
    """Whether a file says that it is one."""
    return data.startswith(SIGNATURES)


def first_frame(data: bytes, most_parts: int) -> tuple[int, int] | None:
    """Width and height of the screen and the first frame together; None where there is no whole frame header.

    Args:
        data: The bytes of a GIF file.
        most_parts: Blocks, and bytes between them, that are looked at before the frame; None beyond that, too.
    """
    if len(data) < SCREEN.size:
        return None
    _, width, height, flags, _, _ = SCREEN.unpack_from(data)
    place = SCREEN.size + ((6 << (flags & 7)) if flags & 0x80 else 0)
    in_extension = False
    for _ in range(most_parts):
        if place >= len(data):
            return None
        if in_extension:
            in_extension = data[place] > 0
            place += 1 + data[place]
        elif data[place] == EXTENSION:
            place, in_extension = _first_block(data, place + 1), True
        elif data[place] == SEPARATOR:
            if place + 1 + FRAME.size > len(data):
                return None
            left, top, frame_width, frame_height = FRAME.unpack_from(data, place + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        elif data[place] == TRAILER:
            return None
        else:
            place += 1
    return None


def _first_block(data: bytes, label: int) -> int:
    """Where the blocks of an extension begin that are read until one is empty; `label` is the place of its label.

    Pillow reads some blocks by themselves, and those behind them even where these are the empty ones: the first of all
    extensions but comments, and the one behind the name of a loop.
    """
    kind, place = data[label : label + 1], label + 1
    first = data[place + 1 : place + 1 + data[place]] if place < len(data) else b""
    if kind == APPLICATION and first.startswith(LOOP):
        place += 1 + data[place]
    return place + 1 if kind != COMMENT and data[place : place + 1] == b"\0" else place
