"""A body is bounded at every byte, as it comes and unpacked."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import zlib
from collections.abc import Sequence

import pytest
from starlette.types import Message

from nvlm_trt.gateway.body import ClientGoneError, check_members, read_body
from nvlm_trt.gateway.errors import ApiError

LIMIT = 1000
MANY = 16 << 20


def read(pieces: Sequence[bytes | None], **headers: str) -> tuple[bytes, int]:
    """The body, and how many pieces were taken; None is a client that goes away."""
    taken = 0
    held: list[int] = []

    async def receive() -> Message:
        nonlocal taken
        piece = pieces[taken]
        taken += 1
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": taken < len(pieces)}

    packed = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    body = asyncio.run(read_body(receive, packed, LIMIT, held.append))
    assert sum(held) == len(body)
    return body, taken


def refused(status: int, pieces: Sequence[bytes], **headers: str) -> None:
    with pytest.raises(ApiError) as refusal:
        read(pieces, **headers)
    assert refusal.value.status == status


def test_a_body_is_read_whole() -> None:
    assert read([b"a", b"", b"bc"]) == (b"abc", 3)
    assert read([b"x" * LIMIT], content_length=str(LIMIT))[0] == b"x" * LIMIT


def test_a_body_too_large_by_its_length_is_not_read_at_all() -> None:
    with pytest.raises(ApiError) as refusal:
        read([], content_length=str(LIMIT + 1))
    assert refusal.value.status == 413


def test_a_body_too_large_is_read_no_further() -> None:
    refused(413, [b"x" * 600, b"x" * 600])


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_packed_body_is_unpacked_within_the_limit(pack) -> None:  # type: ignore[no-untyped-def]
    kind = "gzip" if pack is gzip.compress else "deflate"
    whole = pack(b"abc" * 300)
    assert read([whole[:7], whole[7:]], content_encoding=kind)[0] == b"abc" * 300
    refused(413, [pack(bytes(LIMIT + 1))], content_encoding=kind)
    refused(413, [pack(bytes(100 * LIMIT))], content_encoding=kind)


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"abc")[:-4], gzip.compress(b"abc") + b"more"])
def test_a_damaged_packed_body_is_the_clients_mistake(body: bytes) -> None:
    refused(400, [body], content_encoding="gzip")


@pytest.mark.parametrize("level", [1, 9])
def test_others_have_their_turn_while_a_little_is_unpacked_to_very_much(level: int) -> None:
    whole = bytes(range(256)) * (MANY >> 8)
    pieces = [zlib.compress(whole, level)]
    held: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop()}

    async def read_beside() -> list[int]:
        reading = asyncio.create_task(read_body(receive, {b"content-encoding": b"deflate"}, MANY, held.append))
        seen = [0]
        while not reading.done():
            await asyncio.sleep(0)
            seen.append(sum(held))
        assert await reading == whole
        return seen

    seen = asyncio.run(read_beside())
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 1 << 20


def test_another_packing_is_not_taken() -> None:
    refused(415, [b"x"], content_encoding="br")
    refused(415, [b"x"], content_encoding="gzip, gzip")


def test_an_empty_body_may_say_that_it_is_packed() -> None:
    assert read([b""], content_encoding="gzip")[0] == b""


def test_a_client_that_goes_away_while_it_sends_is_no_error_of_anybody() -> None:
    with pytest.raises(ClientGoneError):
        read([b"x", None])


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"1,", b'"a",'])
def test_a_body_of_too_many_members_is_refused_before_it_is_parsed(unit: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        check_members(b"[" + unit * 300_000 + b"1]")
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_json")
    assert "members" in refusal.value.sentence


def test_images_and_long_texts_are_not_too_many_members() -> None:
    check_members(b'{"a": "' + base64.b64encode(bytes(20_000_000)) + b'", "b": "' + b"lorem ipsum, " * 200_000 + b'"}')
