"""The size of a GIF's first frame, as Pillow would make room for it."""

from __future__ import annotations

import io
import struct
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.gif import first_frame, is_gif
from nvlm_trt.model.image import ImageLimits, read_image, read_size

DISPOSED = b"!\xf9\x04\x08\x00\x00\x00\x00"


def gif(
    screen: tuple[int, int], frame: tuple[int, int, int, int], *, before: bytes = b"", palette: bool = True
) -> bytes:
    """A screen, what is said before the frame, and the frame's header with a little data."""
    head = struct.pack("<6sHHBBB", b"GIF89a", *screen, 0x80 if palette else 0, 0, 0) + bytes(6 if palette else 0)
    return head + before + b"," + struct.pack("<HHHH", *frame) + b"\x00\x02\x02\x4c\x01\x00;"


LOOP = b"NETSCAPE2.0"
BLOCK = (st.binary(min_size=1, max_size=255) | st.just(LOOP)).map(lambda block: bytes([len(block)]) + block)
BLOCKS = st.lists(BLOCK).map(b"".join)
EXTENSIONS = st.builds(
    lambda label, blocks: b"!" + label + blocks + b"\0", st.sampled_from([b"\xf9", b"\xfe", b"\xff", b"\x01"]), BLOCKS
)
SIDES = st.integers(0, 3000)


@given(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES, SIDES, SIDES),
    st.lists(EXTENSIONS | st.binary(max_size=3)),
    st.booleans(),
)
def test_it_is_what_pillow_makes_of_the_header(screen, frame, before, palette):
    data = gif(screen, frame, before=b"".join(before), palette=palette)
    try:
        with warnings.catch_warnings(action="ignore"):
            opened = Image.open(io.BytesIO(data)).size
    except Exception:
        return
    assert is_gif(data)
    assert first_frame(data, len(data)) == opened


def test_a_frame_that_is_disposed_of_is_refused_before_pillow_makes_room_for_it(monkeypatch):
    data = gif((37, 23), (0, 255, 15145, 9472), before=DISPOSED)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    for read in (read_image, read_size):
        with pytest.raises(ImageRejected, match="too many pixels; seen: 15145 x 9727"):
            read(data, ImageLimits(max_pixels=1_000_000))


@pytest.mark.parametrize("data", [b"GIF89a", gif((5, 5), (0, 0, 5, 5))[:24], gif((5, 5), (0, 0, 5, 5))[:19] + b";"])
def test_without_a_whole_header_there_is_no_size(data):
    assert first_frame(data, len(data)) is None
    with pytest.raises(ImageRejected):
        read_size(data)


def test_a_loop_without_a_count_hides_no_frame():
    """Behind its name Pillow reads a block by itself, an empty one too, and those behind that one."""
    hidden = b"!\xff\x0b" + LOOP + b"\0" + b";" + bytes([59]) * 59 + b"\0"
    data = gif((37, 23), (0, 0, 1500, 1400), before=DISPOSED + hidden)
    assert first_frame(data, len(data)) == Image.open(io.BytesIO(data)).size == (1500, 1400)
