"""Bad input, and what has to be said to it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

CHAT: Final = "/v1/chat/completions"
GENERATE: Final = "/v2/models/nvlm/generate"


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that has to be refused.

    Attributes:
        name: What is wrong with it.
        path: Where it is posted to.
        body: Its body.
        headers: Its headers.
        status: What it has to be refused with.
        code: What the answer has to hold besides; "" for nothing.
    """

    name: str
    path: str
    body: bytes
    headers: dict[str, str]
    status: int
    code: str


def bad_requests(seed: int, *, max_images: int) -> Sequence[Bad]:
    """One of every kind.

    Args:
        seed: Of what is random in them.
        max_images: The recipe's.
    """
    chance = random.Random(seed)
    good = _picture("PNG")
    noise = chance.randbytes(2000)
    images = {
        "a truncated PNG": good[: len(good) // 2],
        "noise that calls itself an image": noise,
        "a picture of 60,000 x 60,000 in some bytes": _bomb(60_000),
        "an animation": _animation(),
        "a picture of one pixel": _picture("PNG", (1, 1)),
        "a header and nothing behind it": good[:33],
    }
    requests = [Bad(name, CHAT, _chat(_part(file)), {}, 400, "invalid_image") for name, file in images.items()]
    too_many = [_part(good)] * (max_images + 1)
    requests += [
        Bad("no JSON", CHAT, b'{"model": "nvlm", "messages": [', {}, 400, "invalid_json"),
        Bad("an empty body", CHAT, b"", {}, 400, ""),
        Bad("too many images", CHAT, _chat(*too_many), {}, 400, "too_many_images"),
        Bad("base64 that is none", CHAT, _chat(_url("data:image/png;base64,@@@")), {}, 400, "invalid_image"),
        Bad("a file's URL", CHAT, _chat(_url("file:///etc/passwd")), {}, 400, "url_not_allowed"),
        Bad("an inner address", CHAT, _chat(_url("http://127.0.0.1:1/a.png")), {}, 400, "url_not_allowed"),
        Bad("a prompt beyond the context", CHAT, _chat(_text("word " * 20_000)), {}, 400, "context_length_exceeded"),
        Bad("an unknown field", CHAT, _chat(_text("Hi"), n_best=3), {}, 400, "unknown_parameter"),
        Bad("more tokens than there can be", CHAT, _chat(_text("Hi"), max_tokens=1 << 30), {}, 400, ""),
        Bad("another model", CHAT, _chat(_text("Hi"), model="gpt"), {}, 404, "model_not_found"),
        Bad("NaN as temperature", CHAT, _chat(_text("Hi"), temperature=float("nan")), {}, 400, ""),
        Bad("another packing", CHAT, _chat(_text("Hi")), {"Content-Encoding": "br"}, 415, ""),
        Bad("a bomb of gzip", CHAT, _gzip_bomb(), {"Content-Encoding": "gzip"}, 413, "request_too_large"),
        Bad("generate without a text", GENERATE, b'{"max_tokens": 4}', {}, 400, ""),
        Bad("generate with a wrong type", GENERATE, b'{"text_input": 3}', {}, 400, ""),
        Bad("generate with a bad image", GENERATE, _json(text_input="Hi", image_bytes=[_b64(noise)]), {}, 400, ""),
        Bad("a model that is not for clients", "/v2/models/tensorrt_llm/generate", b"{}", {}, 403, ""),
    ]
    return requests


def _json(**members: Any) -> bytes:
    return json.dumps(members).encode()


def _chat(*parts: dict[str, Any], model: str = "nvlm", **others: Any) -> bytes:
    return _json(model=model, messages=[{"role": "user", "content": list(parts)}], **others)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _part(file: bytes) -> dict[str, Any]:
    return _url("data:image/png;base64," + _b64(file))


def _b64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _picture(form: str, size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, form)
    return out.getvalue()


def _animation() -> bytes:
    frames = [Image.new("L", (32, 32), shade) for shade in (0, 99, 200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG whose header names more pixels than any machine has memory for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def _gzip_bomb() -> bytes:
    """256 MiB of spaces in a megabyte."""
    return gzip.compress(b" " * (256 << 20), 1)
