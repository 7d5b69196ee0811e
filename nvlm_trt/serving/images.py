"""The bytes of an image file in a request field: raw, base64 text, or a data URI."""

from __future__ import annotations

import binascii

import pybase64

from nvlm_trt.errors import ImageRejected

DATA_URI = b"data:"
BASE64_MARK = b";base64"
MAX_HEAD = 128
"""Bytes of a data URI in front of its comma."""


def image_file(field: bytes, max_bytes: int) -> bytes:
    """The file that a field carries.

    gRPC and binary HTTP clients send the file itself; JSON cannot, so its clients send base64 text. No image format
    begins with text that is valid base64 as a whole, so what decodes strictly is base64.

    Args:
        field: The field's bytes.
        max_bytes: Largest file that is accepted; a longer text is refused before it is decoded.

    Returns:
        The file's bytes, or the field unchanged where it is neither base64 nor a data URI.

    Raises:
        ImageRejected: a data URI that is not base64, or a text too long.
    """
    if field[:5].lower() == DATA_URI:
        comma = field.find(b",", 0, MAX_HEAD)
        head, text = field[: max(comma, 0)], memoryview(field)[comma + 1 :]
        if comma < 0 or not head.lower().endswith(BASE64_MARK) or not head.lower().startswith(b"data:image/"):
            raise ImageRejected("the data URI is no image in base64", expected="data:image/<type>;base64,<data>")
        _check_length(text, max_bytes)
        try:
            return pybase64.b64decode(text, validate=True)
        except binascii.Error:
            raise ImageRejected("the data URI's base64 is damaged", fix="send it complete") from None
    if not field[:64].strip().isascii():
        return field
    joined = b"".join(field.split())
    try:
        decoded = pybase64.b64decode(joined, validate=True) if len(joined) <= _text_length(max_bytes) else b""
    except binascii.Error:
        return field
    return decoded or field


def _check_length(text: memoryview, max_bytes: int) -> None:
    if len(text) > _text_length(max_bytes):
        raise ImageRejected("the image file is too large", seen=f"{len(text) * 3 // 4} bytes", expected=max_bytes)


def _text_length(max_bytes: int) -> int:
    return (max_bytes + 2) // 3 * 4
