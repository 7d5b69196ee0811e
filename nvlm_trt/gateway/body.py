"""A request's body, read whole and unpacked, within its limit at every byte."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from starlette.types import Receive

from nvlm_trt.gateway.errors import ApiError

GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
"""Lets zlib tell the two by their headers."""

PACKED: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})


MAX_MEMBERS: Final = 250_000
"""Commas and opening brackets of a JSON body, those in texts included. Each may become an object of dozens of bytes,
and a parser holds the event loop for as long as it makes them. No text that fits a prompt has as many."""

SMALL_BODY: Final = 1 << 18
"""Bytes of a body that cannot have too many to matter."""

PIECE: Final = 1 << 20
"""Bytes that are looked at, or unpacked, at once."""

MEMBER_CODES: Final = b",[{"


class ClientGoneError(Exception):
    """The client closed its connection, or does not read from it."""


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int, hold: Callable[[int], None]) -> bytes:
    """Read a body.

    Args:
        receive: Where it comes from.
        headers: Of the request.
        limit: Bytes at most, as they come and unpacked.
        hold: Told how many bytes more are held.

    Raises:
        ApiError: 413 a body too large, before it is read where its length says so; 415 packed in an unknown way; 400
            damaged.
        ClientGoneError: the client went away.
    """
    length = headers.get(b"content-length", b"0")
    if int(length) > limit:
        raise _too_large(limit)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower() or b"identity"
    if encoding not in PACKED and encoding != b"identity":
        raise ApiError(415, "the body is packed in an unknown way; expected: gzip, deflate, or as it is")
    unpack = zlib.decompressobj(GZIP_OR_ZLIB) if encoding in PACKED else None
    body, came, more = bytearray(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece, more = message.get("body", b""), message.get("more_body", False)
        came += len(piece)
        if came > limit:
            raise _too_large(limit)
        if unpack is None:
            _add(body, piece, limit, hold)
            continue
        while piece:  # a little may unpack to very much: others have their turn in between
            _add(body, _unpacked(unpack, piece), limit, hold)
            piece = unpack.unconsumed_tail
            await asyncio.sleep(0)
    if unpack is not None and came and (not unpack.eof or unpack.unused_data):
        raise ApiError(400, "the packed body is damaged; send it complete")
    return bytes(body)


def check_members(body: bytes) -> None:
    """Refuse a JSON body that is small for what it asks a parser to make. Holds no interpreter lock while it counts.

    Raises:
        ApiError: 400, it has too many members.
    """
    if len(body) <= SMALL_BODY:
        return
    codes, count = np.frombuffer(body, np.uint8), 0
    for begin in range(0, len(codes), PIECE):
        piece = codes[begin : begin + PIECE]
        count += sum(int(np.count_nonzero(piece == code)) for code in MEMBER_CODES)
        if count > MAX_MEMBERS:
            sentence = f"the request has too many members; expected: at most {MAX_MEMBERS} commas and brackets"
            raise ApiError(400, sentence, code="invalid_json")


def _add(body: bytearray, piece: bytes, limit: int, hold: Callable[[int], None]) -> None:
    if len(body) + len(piece) > limit:
        raise _too_large(limit)
    hold(len(piece))
    body += piece


def _unpacked(unpack: zlib._Decompress, piece: bytes) -> bytes:
    try:
        return unpack.decompress(piece, PIECE)
    except zlib.error:
        raise ApiError(400, "the packed body is damaged; send it complete") from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request is too large; expected: at most {limit} bytes", code="request_too_large")
