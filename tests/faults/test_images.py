"""Images that claim too much, are none, or are of a kind that is not defined for the model (faults 6 to 8)."""

from __future__ import annotations

import io
import statistics
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from nvlm_trt.client import NvlmClient
from nvlm_trt.errors import RequestError

from .conftest import FaultRecord, Watch
from .served import Served
from .wire import CHAT, GENERATE, Reply, ask, assert_clear, chat, data_uri

Begin = Callable[[], Watch]
SIDE = 60_000


def file_of(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(side: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Files of a few kB that claim, or unpack to, gigabytes, or that a reader makes much of."""
    small = file_of(Image.new("RGB", (64, 64)), "JPEG")
    jpeg = bytearray(small)
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", SIDE, SIDE)
    gif = bytearray(file_of(Image.new("P", (64, 64)), "GIF"))
    gif[6:10] = struct.pack("<HH", SIDE, SIDE)
    disposed, frame = b"!\xf9\x04\x08\x00\x00\x00\x00", struct.pack("<HHHH", 0, 0, 15_000, 9_500)
    far_gif = (
        b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + disposed + b"," + frame + b"\x00\x02\x02\x4c\x01\x00;"
    )
    bmp = bytearray(file_of(Image.new("RGB", (64, 64)), "BMP"))
    bmp[18:26] = struct.pack("<ii", SIDE, SIDE)
    canvas = struct.pack("<I", 16382)[:3] * 2
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + b"VP8L"
    rows = png_chunk(b"IDAT", zlib.compress(bytes(2_000_000)))
    return {
        "PNG": png(SIDE, rows),
        "PNG of 144 megapixels": png(12_000, rows),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "WEBP": webp,
        "PNG with a text of 100 MB": png(64, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000))), rows),
        "PNG with a colour profile of 100 MB": png(
            64, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000))), rows
        ),
        "GIF whose frame reaches far beyond its screen": far_gif,
        "JPEG of 25,000 empty segments": small[:2] + b"\xff\xef\x00\x02" * 25_000 + small[2:],
    }


BOMBS = bombs()


@pytest.mark.fault(case=6)
@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_claims_too_much_is_refused_from_its_header(
    served: Served, watch: Begin, fault_record: FaultRecord, name: str
) -> None:
    assert len(BOMBS[name]) < 110_000
    ask(served.http, CHAT, chat(images=[data_uri(b"warm")]))
    began = watch()
    answers = [ask(served.http, CHAT, chat(images=[data_uri(BOMBS[name])])) for _ in range(3)]
    growth, seen = began.end()
    assert_refused(answers[0])
    assert "damaged or truncated" not in answers[0].sentence, "its pixels were decoded"
    assert growth < 25
    fault_record(
        time_ms=statistics.median(answer.ms for answer in answers), memory_mb=growth, others=seen, variant=name
    )


def assert_refused(answer: Reply, place: str = "image 1 of 1: ") -> None:
    assert answer.status == 400, answer.body[:300]
    error = answer.error
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_image")
    assert error["message"].startswith(place)
    assert_clear(error["message"])


def no_images() -> dict[str, bytes]:
    noise = Image.effect_noise((200, 200), 50).convert("RGB")
    whole, jpeg = file_of(noise, "PNG"), file_of(noise, "JPEG")
    return {
        "nothing": b"",
        "text": b"this is no image at all",
        "random bytes": bytes(range(256)) * 20,
        "half of a PNG": whole[: len(whole) // 2],
        "half of a JPEG": jpeg[: len(jpeg) // 2],
        "a header alone": whole[:33],
        "damaged inside": whole[:500] + bytes(500) + whole[1000:],
        "a web page that begins like a GIF": b"GIF89a/*<svg onload=alert(1)>*/=1;",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n",
        "TIFF": file_of(noise, "TIFF"),
        "ICO": file_of(noise, "ICO"),
        "PDF": file_of(noise, "PDF"),
        "zip": b"PK\x03\x04" + bytes(200),
    }


NO_IMAGES = no_images()


@pytest.mark.fault(case=7)
@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused_by_its_number(served: Served, fault_record: FaultRecord, name: str) -> None:
    good = data_uri(file_of(Image.new("RGB", (32, 32), "red"), "PNG"))
    alone = ask(served.http, CHAT, chat(images=[data_uri(NO_IMAGES[name])]))
    assert_refused(alone)
    second = ask(served.http, CHAT, chat(images=[good, data_uri(NO_IMAGES[name])]))
    assert_refused(second, "image 2 of 2: ")
    body = {"text_input": "x", "image_bytes": [data_uri(NO_IMAGES[name])], "max_tokens": 4}
    generate = ask(served.http, GENERATE, body)
    assert generate.status == 400
    assert "image 1 of 1" in generate.sentence
    assert_clear(generate.sentence)
    fault_record(time_ms=alone.ms, variant=name)


@pytest.mark.fault(case=7)
def test_no_stream_is_closed_by_tritonserver_itself_when_a_model_refuses_an_image(served: Served) -> None:
    """It says so when it does, and about once in a thousand times it dies of it, with every other stream."""
    half = NO_IMAGES["half of a PNG"]  # its header is whole: it comes to the model
    for _ in range(20):
        assert_refused(ask(served.http, CHAT, chat(images=[data_uri(half)])))
    with NvlmClient(served.grpc) as client, pytest.raises(RequestError, match="image 1 of 1: the image is damaged"):
        client.generate("x", images=[half])
    assert "HandleCancellation" not in served.log


@pytest.mark.fault(case=7)
def test_a_hundred_of_them_disturb_nobody(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    began = watch()
    for _ in range(7):
        for file in NO_IMAGES.values():
            assert ask(served.http, CHAT, chat(images=[data_uri(file)])).status == 400
    growth, seen = began.end()
    assert growth < 30
    fault_record(memory_mb=growth, others=seen, variant="a hundred of them")


@pytest.mark.fault(case=7)
def test_a_photograph_with_something_behind_it_is_that_photograph(served: Served, jpeg: Callable[[str], bytes]) -> None:
    """What follows an image, an archive or a page, is not looked at."""
    file = jpeg("chelsea")
    plain, polyglot = (
        ask(served.http, CHAT, chat(images=[data_uri(data, "jpeg")])) for data in (file, file + b"PK\x03\x04<script>")
    )
    assert plain.status == polyglot.status == 200
    assert plain.json["choices"] == polyglot.json["choices"]


def frames(kind: str, count: int) -> bytes:
    """An animation of a few kB."""
    pictures = [Image.new("RGB", (8, 8), ("red", "blue")[number % 2]) for number in range(count)]
    return file_of(pictures[0], kind, save_all=True, append_images=pictures[1:])


def long_gif(count: int) -> bytes:
    """A GIF whose one frame is there many times."""
    still = file_of(Image.new("P", (8, 8)), "GIF")
    begin = still.index(b",", 13 + 3 * 2 ** ((still[10] & 7) + 1))
    return still[:begin] + still[begin:-1] * count + still[-1:]


def undefined() -> dict[str, tuple[bytes, str]]:
    """Kinds of images that are refused, and by which word."""
    return {
        "GIF of 10,000 frames": (long_gif(10_000), "animated"),
        "APNG": (frames("PNG", 3), "animated"),
        "WEBP of 100 frames": (frames("WEBP", 100), "animated"),
        "TIFF of 100 frames": (frames("TIFF", 100), "known format"),
        "CMYK": (file_of(Image.new("CMYK", (64, 48)), "JPEG"), "mode CMYK"),
        "16 bits": (file_of(Image.new("I;16", (64, 48)), "PNG"), "16 bits"),
        "1 x 1": (file_of(Image.new("RGB", (1, 1)), "PNG"), "too small"),
        "1 x 5,000": (file_of(Image.new("RGB", (1, 5000)), "PNG"), "too small"),
        "2 x 20,001": (file_of(Image.new("RGB", (2, 20_001)), "PNG"), "too long"),
    }


UNDEFINED = undefined()


@pytest.mark.fault(case=8)
@pytest.mark.parametrize("name", UNDEFINED)
def test_an_image_of_a_kind_that_is_not_defined_is_refused(
    served: Served, fault_record: FaultRecord, name: str
) -> None:
    file, word = UNDEFINED[name]
    answer = ask(served.http, CHAT, chat(images=[data_uri(file)]))
    assert_refused(answer)
    assert word in answer.sentence
    fault_record(time_ms=answer.ms, variant=name)


def defined(photograph: Image.Image) -> dict[str, tuple[bytes, bytes]]:
    """Kinds of images that are taken, each with the file of plain RGB that it must be answered like."""
    turned = photograph.copy()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    grey, palette = photograph.convert("L"), photograph.convert("P")
    alpha = photograph.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photograph.size))
    thin = photograph.resize((2, 700))

    def as_rgb(image: Image.Image) -> bytes:
        return file_of(image.convert("RGB"), "PNG")

    return {
        "EXIF rotation": (file_of(turned, "PNG", exif=exif), as_rgb(turned.transpose(Image.Transpose.ROTATE_270))),
        "grey": (file_of(grey, "PNG"), as_rgb(grey)),
        "palette": (file_of(palette, "PNG"), as_rgb(palette)),
        "palette with alpha": (file_of(palette, "PNG", transparency=0), as_rgb(palette)),
        "alpha": (file_of(alpha, "PNG"), as_rgb(photograph)),
        "GIF of one frame": (file_of(palette, "GIF"), as_rgb(palette)),
        "black and white": (file_of(photograph.convert("1"), "PNG"), as_rgb(photograph.convert("1"))),
        "2 x 700": (file_of(thin, "PNG"), as_rgb(thin)),
    }


@pytest.mark.fault(case=8)
def test_images_of_other_defined_kinds_are_normalised(
    served: Served, photographs: dict[str, Image.Image], watch: Begin, fault_record: FaultRecord
) -> None:
    began, longest = watch(), 0.0
    for name, (file, same) in defined(photographs["chelsea"].resize((160, 120))).items():
        answers = [ask(served.http, CHAT, chat(images=[data_uri(data)], max_tokens=12)) for data in (file, same)]
        assert [answer.status for answer in answers] == [200, 200], name
        assert answers[0].json["choices"] == answers[1].json["choices"], name
        longest = max(longest, answers[0].ms)
    growth, seen = began.end()
    assert growth < 60
    fault_record(memory_mb=growth, others=seen, variant="normalised: rotation, grey, palette, alpha, one frame, thin")
