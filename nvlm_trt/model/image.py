"""From the bytes of an image file to an upright RGB image, with every limit checked before a pixel is decoded.

Images whose colours or frame are not defined for the model are refused, not guessed at: animations (which frame?), CMYK
(by which profile?), 16 bits a channel (Pillow would clip them). Transparency is dropped, as the released
``convert("RGB")`` does.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.gif import first_frame, is_gif

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its orientation in EXIF."""

TURNED_BY_90 = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""

BYTES_A_PIXEL = {"WEBP": 16, "JPEG": 10, "MPO": 10}
"""Memory that decoding takes at most, by Pillow's format; 8 for others: an image and the same converted or turned.
Measured: Pillow reads a WebP through two canvases and a copy, libjpeg keeps the coefficients of a progressive JPEG."""

PNG_BIT_DEPTH_OFFSET = 24
"""Byte of a PNG file that holds the bits a channel: signature 8, chunk head 8, width 4, height 4."""

PNG_SIGNATURE_BYTES = 8
PNG_NAME = re.compile(rb"\w{4}")
"""A chunk's name; behind the pixels Pillow stops at another one without a word."""

PNG_PIXELS = (b"IDAT", b"fdAT")
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")
"""Keywords of the texts in which Pillow looks for an orientation, besides the chunk eXIf."""

WATCHED_BYTES = 8192
"""What Pillow decodes of a watched file at a time, in place of 64 kB, which of a plain picture are five megapixels."""

MOST_PARTS = 10_000
BYTES_A_PART = 120
"""A file is read in so many parts at most, and one more for so many of its bytes. Of common files a GIF with whole
blocks of 255 bytes comes nearest, two parts each; a BMP with run lengths, which Pillow reads byte by byte, goes beyond
from about 10 kB on."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be at most; `min_side` refuses images without content.

    The default of 50 megapixels admits a phone's photograph and needs 400 to 800 MB to decode (`BYTES_A_PIXEL`).
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_side: int = 20_000
    min_side: int = 2


DEFAULT_LIMITS = ImageLimits()


def _most_parts(data: bytes) -> int:
    return MOST_PARTS + len(data) // BYTES_A_PART


class _TooManyPartsError(Exception):
    """A file is read in more parts than one of its size may have."""


class _File(io.BytesIO):
    """A file that is read in a bounded number of parts, and calls back at each.

    Pillow reads headers part by part, in Python, and keeps what it read: 2 MB of empty JPEG segments are a second of
    work and 70 MB of objects.
    """

    def __init__(self, data: bytes, watch: Callable[[], None] | None) -> None:
        super().__init__(data)
        self._watch = watch
        self._parts = _most_parts(data)

    def read(self, size: int | None = -1) -> bytes:
        self._parts -= 1
        if self._parts < 0:
            raise _TooManyPartsError
        if self._watch is not None:
            self._watch()
        return super().read(size)


def read_image(
    data: bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    exif_orientation: bool = True,
    watch: Callable[[], None] | None = None,
) -> Image.Image:
    """Decode an image file.

    Args:
        data: The file's bytes.
        limits: Checked against the file's size and header before decoding.
        exif_orientation: Turn the image upright as its EXIF says; False gives the released behaviour.
        watch: Called now and then meanwhile; what it raises ends the decoding (as an ImageRejected).

    Returns:
        The image in mode RGB.

    Raises:
        ImageRejected: with one sentence that holds no text of the decoding library.
    """
    image = _opened(data, limits, watch)
    if watch is not None:
        image.decodermaxblock = WATCHED_BYTES  # type: ignore[attr-defined] # of every file that Pillow opens
    try:
        image.load()
        # Not by ImageOps.exif_transpose: it writes the whole EXIF anew, and fails on tags of unusual types.
        image.info.pop("transparency", None)  # else Pillow warns that a palette's is lost
        turn = TURNS.get(_orientation(image)) if exif_orientation else None
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        del image
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:
        raise _refusal(error) from None


def read_size(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, exif_orientation: bool = True) -> tuple[int, int]:
    """Width and height of the image that `read_image` would make, without decoding a pixel.

    Args:
        data: The file's bytes.
        limits: Checked against the file's size and header.
        exif_orientation: As for `read_image`.

    Raises:
        ImageRejected: the file's header is damaged, or beyond the limits.
    """
    image = _opened(data, limits)
    if not exif_orientation:
        return image.size
    if image.format == "PNG" and (header := _with_late_turns(data)) is not None:
        image = _open(io.BytesIO(header), limits)
    return image.size[::-1] if _orientation(image) in TURNED_BY_90 else image.size


def decoding_bytes(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Memory that `read_image` takes at most for a file, beside the file itself, without decoding a pixel.

    Args:
        data: The file's bytes.
        limits: Checked against the file's size and header.

    Raises:
        ImageRejected: the file's header is damaged, or beyond the limits.
    """
    image = _opened(data, limits)
    return image.width * image.height * BYTES_A_PIXEL.get(image.format or "", 8)


def _orientation(image: Image.Image) -> Any:
    """EXIF's orientation, 1 where there is none that can be read. Of a PNG only what has been read counts."""
    try:
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own way decodes it
    except Exception:  # as in `_refusal`; the pixels are sound all the same
        return 1


def _with_late_turns(data: bytes) -> bytes | None:
    """A PNG's header, with the chunks behind its pixels that may say how to turn it moved into it; None without any.

    Pillow reads those behind the pixels when it has decoded them, and asks for no checksum there.

    Raises:
        ImageRejected: it consists of too many chunks.
    """
    pixels, late = 0, bytearray()
    try:
        for place, kind, length in _png_chunks(data):
            if kind in PNG_PIXELS:
                pixels = pixels or place
            elif pixels and (kind == b"eXIf" or (kind in PNG_TEXTS and _keyword(data, place, length) in PNG_TURNS)):
                end = place + 8 + length
                late += data[place:end]
                late += zlib.crc32(data[place + 4 : end]).to_bytes(4)
    except _TooManyPartsError as error:
        raise _refusal(error) from None
    return data[:pixels] + late + data[pixels : pixels + 12] if late else None  # so far is read without decoding


def _png_chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Where each chunk of a PNG begins, its name and the bytes of its content."""
    place = PNG_SIGNATURE_BYTES
    for _ in range(_most_parts(data) // 2):  # Pillow reads each in two parts at least
        kind, length = data[place + 4 : place + 8], int.from_bytes(data[place : place + 4])
        if kind == b"IEND" or not PNG_NAME.fullmatch(kind):
            return
        yield place, kind, length
        place += 12 + length
    raise _TooManyPartsError


def _keyword(data: bytes, place: int, length: int) -> bytes:
    longest = max(len(name) for name in PNG_TURNS) + 1
    return data[place + 8 : place + 8 + min(length, longest)].partition(b"\0")[0]


def _opened(data: bytes, limits: ImageLimits, watch: Callable[[], None] | None = None) -> Image.Image:
    """The image with its header read and every limit checked."""
    _check_file(data, limits)
    image = _open(_File(data, watch), limits)
    _check_header(image, data, limits)
    return image


def _check_file(data: bytes, limits: ImageLimits) -> None:
    if not data:
        raise ImageRejected("the image is empty", seen="0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageRejected("the image file is too large", seen=f"{len(data)} bytes", expected=limits.max_bytes)
    if is_gif(data) and (size := first_frame(data, _most_parts(data))) is not None:
        _check_size(size, limits)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    seen = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise ImageRejected("the image has too many pixels", seen=seen, expected=f"at most {limits.max_pixels}")
    if max(size) > limits.max_side:
        raise ImageRejected("the image is too long", seen=seen, expected=f"sides of at most {limits.max_side}")
    if min(size) < limits.min_side:
        raise ImageRejected("the image is too small", seen=seen, expected=f"sides of at least {limits.min_side}")


def _open(file: io.BytesIO, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRejected("the image has too many pixels", expected=f"at most {limits.max_pixels}") from None
    except _TooManyPartsError as error:
        raise _refusal(error) from None
    except Exception:  # as in `_refusal`
        expected = ", ".join(FORMATS)
        raise ImageRejected(
            "this is not an image of a known format, or its header is damaged", expected=expected
        ) from None


def _is_animated(image: Image.Image) -> bool:
    """Whether there is more than one frame; of a GIF the second one's header is read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:
        raise _refusal(error) from None


def _refusal(error: Exception) -> ImageRejected:
    """What is told of an image that could not be read to its end.

    Decoders raise many types on damaged data, and their texts may carry addresses or paths.
    """
    if isinstance(error, _TooManyPartsError):
        return ImageRejected("the image file consists of too many small parts", fix="save the picture anew")
    return ImageRejected("the image is damaged or truncated", fix="send a complete file")


def _check_header(image: Image.Image, data: bytes, limits: ImageLimits) -> None:
    _check_size(image.size, limits)
    # A phone's JPEG may carry further pictures (format MPO); its first one is the photograph.
    if image.format != "MPO" and _is_animated(image):
        raise ImageRejected("the image is animated", fix="send the one frame that is meant")
    if image.format == "PNG" and data[PNG_BIT_DEPTH_OFFSET] > 8:
        raise ImageRejected("the image has 16 bits a channel", expected="8 bits a channel")
    if image.mode not in PLAIN_MODES:
        raise ImageRejected(
            "the image's colours are not RGB or grey", seen=f"mode {image.mode}", fix="convert it to RGB"
        )
