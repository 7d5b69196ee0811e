"""Image files are checked by their headers, decoded upright, or refused in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.image import ImageLimits, read_image, read_size


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int, bit_depth: int = 8) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
    body = zlib.compress(bytes(5000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def photo(photographs: dict[str, Image.Image]) -> Image.Image:
    return photographs["chelsea"]


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_known_formats_are_decoded_as_the_release_does(photo: Image.Image, image_format: str) -> None:
    data = encoded(photo, image_format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_grey_alpha_and_plain_palettes_become_rgb(photo: Image.Image, mode: str) -> None:
    data = encoded(photo.convert(mode), "PNG")
    image = read_image(data)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(("image_format", "transparency"), [("PNG", 0), ("PNG", b"\0\x80\xff"), ("GIF", 0)])
def test_of_palettes_with_transparency_the_colours_count(
    photo: Image.Image, image_format: str, transparency: int | bytes
) -> None:
    palette = photo.quantize(16)
    data = encoded(palette, image_format, transparency=transparency)
    assert "transparency" in Image.open(io.BytesIO(data)).info
    assert np.array_equal(read_image(data), palette.convert("RGB"))


def test_a_photograph_is_turned_upright_unless_asked_not_to(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", exif=exif)
    assert read_image(data).size == (photo.height, photo.width)
    assert read_image(data, exif_orientation=False).size == photo.size


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [(0x011A, 2, "72"), (0x0128, 2, "inch"), (0x0100, 2, "30"), (0x0100, 5, IFDRational(1, 2)), (0x9204, 9, -1)],
)
def test_tags_of_unusual_types_do_not_keep_a_photograph_from_being_turned(
    photo: Image.Image, tag: int, kind: int, value: object
) -> None:
    directory = ImageFileDirectory_v2()
    directory[0x0112] = 6
    directory.tagtype[tag] = kind
    directory[tag] = value
    file = io.BytesIO(b"Exif\0\0II*\0\x08\0\0\0")
    file.seek(0, io.SEEK_END)
    file.write(directory.tobytes(8))
    data = encoded(photo.resize((30, 20)), "JPEG", exif=file.getvalue())
    assert read_image(data).size == read_size(data) == (20, 30)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_exif_that_cannot_be_read_turns_nothing(photo: Image.Image, image_format: str) -> None:
    data = encoded(photo.resize((30, 20)), image_format, exif=b"Exif\0\0no TIFF at all")
    assert read_image(data).size == read_size(data) == (30, 20)


TAKES = """
import sys
from nvlm_trt.model.image import decoding_bytes, read_image
def most():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
read_image(open(sys.argv[1], "rb").read())
data = open(sys.argv[2], "rb").read()
before = most()
read_image(data)
print((most() - before) / decoding_bytes(data))
"""


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_decoding_takes_no_more_memory_than_is_said_before(tmp_path, image_format, mode, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("small", (16, 16)), ("large", (2400, 2000))):
        Image.new(mode, size, 7 if mode == "P" else "red").save(tmp_path / name, image_format, exif=exif, **options)
    run = subprocess.run(
        [sys.executable, "-c", TAKES, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True
    )
    assert 0.4 < float(run.stdout) < 1.05, run.stderr


def frames(photo: Image.Image, image_format: str) -> bytes:
    small = photo.resize((32, 32))
    return encoded(small, image_format, save_all=True, append_images=[small.rotate(90)])


REFUSED = {
    "empty": lambda photo: b"",
    "text": lambda photo: b"this is no image",
    "svg": lambda photo: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "truncated png": lambda photo: encoded(photo, "PNG")[:5000],
    "truncated jpeg": lambda photo: encoded(photo, "JPEG")[:2000],
    "header only": lambda photo: encoded(photo, "PNG")[:40],
    "bomb": lambda photo: png_header(60_000, 60_000),
    "long": lambda photo: png_header(30_000, 10),
    "tiff": lambda photo: encoded(photo, "TIFF"),
    "animated gif": lambda photo: frames(photo, "GIF"),
    "animated png": lambda photo: frames(photo, "PNG"),
    "animated webp": lambda photo: frames(photo, "WEBP"),
    "cmyk": lambda photo: encoded(photo.convert("CMYK"), "JPEG"),
    "16-bit grey": lambda photo: encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
    "16-bit colour": lambda photo: png_header(8, 8, bit_depth=16),
    "1 x 1": lambda photo: encoded(photo.resize((1, 1)), "PNG"),
    "1 x 9": lambda photo: encoded(photo.resize((1, 9)), "PNG"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_in_one_sentence(photo: Image.Image, name: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image(REFUSED[name](photo))
    message = str(caught.value)
    assert message.startswith(("the image", "this is not an image"))
    assert "\n" not in message
    assert "0x" not in message
    assert "/" not in message


def test_a_bomb_is_refused_from_its_header(photo: Image.Image) -> None:
    data = png_header(60_000, 60_000)
    assert len(data) < 4000
    start = time.thread_time()
    with pytest.raises(ImageRejected, match="too many pixels"):
        read_image(data)
    assert time.thread_time() - start < 0.5


def test_the_limits_are_settings(photo: Image.Image) -> None:
    data = encoded(photo, "PNG")
    for limits in (
        ImageLimits(max_bytes=len(data) - 1),
        ImageLimits(max_pixels=451 * 300 - 1),
        ImageLimits(max_side=450),
    ):
        with pytest.raises(ImageRejected):
            read_image(data, limits)
    exact = ImageLimits(max_bytes=len(data), max_pixels=451 * 300, max_side=451, min_side=300)
    assert read_image(data, exact).size == (451, 300)


def test_a_phones_two_picture_jpeg_is_its_first_picture(photo: Image.Image) -> None:
    data = encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(90)])
    assert read_image(data).size == photo.size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("upright", [True, False])
def test_the_size_is_read_from_the_header(
    photo: Image.Image, image_format: str, orientation: int, upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo.resize((30, 20)), image_format, exif=exif)
    size = read_image(data, exif_orientation=upright).size
    assert (size == (20, 30)) == (upright and orientation >= 5)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert read_size(data, exif_orientation=upright) == size


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


HEX = b"\nexif\n      26\n" + exif_of(6).hex().encode()
XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    ("kind", "content", "turned"),
    [
        (b"eXIf", exif_of(6)[6:], True),
        (b"eXIf", exif_of(3)[6:], False),
        (b"tEXt", b"Raw profile type exif\0" + HEX, True),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX), True),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, True),
        (b"tEXt", b"exif\0" + exif_of(6), True),
        (b"tEXt", b"date:create\0" + exif_of(6), False),
        (b"tEXt", b"Raw profile type exif, not\0" + HEX, False),
    ],
)
def test_what_a_png_says_behind_its_pixels_of_how_to_turn_it_is_read_without_decoding_them(
    photo: Image.Image, kind: bytes, content: bytes, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encoded(photo.resize((30, 20)), "PNG")
    size = (20, 30) if turned else (30, 20)
    chunk = len(content).to_bytes(4) + kind + content
    late = plain[:-12] + chunk + b"sum?" + plain[-12:]
    unread = [plain + chunk + b"sum?", plain[:-12] + b"\0\0\0\0-no-sum?" + chunk + b"sum?" + plain[-12:]]
    assert [read_image(data).size for data in (late, *unread)] == [size, (30, 20), (30, 20)]
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert [read_size(data) for data in (late, *unread)] == [size, (30, 20), (30, 20)]


def test_of_two_that_say_how_to_turn_a_png_the_later_one_counts(photo: Image.Image) -> None:
    def chunk(orientation: int) -> bytes:
        content = exif_of(orientation)[6:]
        return len(content).to_bytes(4) + b"eXIf" + content + zlib.crc32(b"eXIf" + content).to_bytes(4)

    plain = encoded(photo.resize((30, 20)), "PNG")
    for early, late, size in ((1, 6, (20, 30)), (6, 1, (30, 20))):
        data = plain[:33] + chunk(early) + plain[33:-12] + chunk(late) + plain[-12:]
        assert read_image(data).size == read_size(data) == size


def test_a_png_that_is_cut_off_where_it_says_how_to_turn_it_is_refused(photo: Image.Image) -> None:
    late = encoded(photo.resize((30, 20)), "PNG")[:-12] + b"\0\0\0\x20eXIfExif"
    for read in (read_image, read_size):
        with pytest.raises(ImageRejected):
            read(late)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decoding_ends_when_the_watcher_says_so(kind):
    """What is read of a file until then is a small part of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    calls = 0

    def watch() -> None:
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise InterruptedError

    stop_after = 10**9
    assert np.array_equal(read_image(file.getvalue(), watch=watch), read_image(file.getvalue()))
    whole, calls, stop_after = calls, 0, calls // 2
    with pytest.raises(ImageRejected):
        read_image(file.getvalue(), watch=watch)
    assert calls == whole // 2 + 1


def test_the_watcher_is_asked_often_even_where_a_small_file_is_a_large_plain_picture():
    file, calls = io.BytesIO(), []
    Image.new("RGB", (4000, 2000), "red").save(file, "PNG", compress_level=1)
    read_image(file.getvalue(), watch=lambda: calls.append(None))
    assert len(calls) >= 10 + 8, "ten times for the header, then once a megapixel"


def in_parts(kind: str, count: int) -> bytes:
    """A small picture, and so many parts without content."""
    file = io.BytesIO()
    Image.new("P" if kind == "GIF" else "RGB", (64, 64)).save(file, kind)
    data = file.getvalue()
    if kind == "JPEG":
        return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]
    if kind == "PNG":
        empty = b"\0\0\0\0abCd" + zlib.crc32(b"abCd").to_bytes(4)
        return data[:33] + empty * count + data[33:]
    return data[:-2] + b"\x01a" * count + b"\0;"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_file_of_very_many_parts_is_refused_and_one_of_many_is_read(kind):
    for read in (read_image, read_size):
        with pytest.raises(ImageRejected, match="too many small parts; save the picture anew"):
            read(in_parts(kind, 100_000))
    assert read_size(in_parts(kind, 1_000)) == (64, 64)


def test_a_gif_of_megabytes_is_read():
    """Its blocks are 255 bytes each: of all files that programs write it has the most parts."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(file, "GIF")
    assert len(file.getvalue()) > 2_000_000
    assert read_image(file.getvalue()).size == (1600, 1200)


def run_length_bmp(width: int, height: int) -> bytes:
    """A BMP whose rows are runs of two pixels."""
    rows = (b"\x02\x01" * (width // 2) + b"\0\0") * height + b"\0\1"
    at = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", at + len(rows), 0, 0, at) + header + bytes(1024) + rows


def test_a_small_bmp_with_run_lengths_is_read_and_a_larger_one_is_refused_for_what_it_is():
    assert read_image(run_length_bmp(60, 50)).size == (60, 50)
    with pytest.raises(ImageRejected, match="too many small parts; save the picture anew"):
        read_image(run_length_bmp(200, 100))
