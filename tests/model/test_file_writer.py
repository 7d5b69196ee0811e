"""Writing large files: the bytes, the digest, and when it is told."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nvlm_trt.model import file_writer
from nvlm_trt.model.file_writer import FileWriter

PIECES = [b"", b"head", os.urandom(200_000), b"x" * 6_000_000, os.urandom(5_000_000), os.urandom(3)]


def test_the_file_is_the_pieces_one_after_the_other_and_the_digest_is_theirs(tmp_path: Path) -> None:
    told: list[tuple[Path, str]] = []
    with FileWriter(tmp_path / "file", lambda path, value: told.append((path, value))) as file:
        for piece in PIECES:
            file.write(piece)
        assert told == []
    whole = b"".join(PIECES)
    assert (tmp_path / "file").read_bytes() == whole
    assert told == [(tmp_path / "file", hashlib.sha256(whole).hexdigest())]


def test_what_is_written_may_be_changed_at_once(tmp_path: Path) -> None:
    told: list[str] = []
    block = bytearray(1 << 20)
    with FileWriter(tmp_path / "file", lambda _path, value: told.append(value)) as file:
        for value in range(8):
            block[:] = bytes([value]) * len(block)
            file.write(memoryview(block))
    whole = b"".join(bytes([value]) * len(block) for value in range(8))
    assert told == [hashlib.sha256(whole).hexdigest()]
    assert (tmp_path / "file").read_bytes() == whole


def test_a_file_that_another_program_cuts_short_is_not_given_a_digest(tmp_path: Path) -> None:
    told: list[str] = []

    def write_what_is_cut() -> None:
        with FileWriter(tmp_path / "f", lambda _path, value: told.append(value)) as file:
            file.write(b"some bytes")
            os.truncate(tmp_path / "f", 4)

    with pytest.raises(OSError, match="ends at 4 of 10 bytes"):
        write_what_is_cut()
    assert told == []


def test_zeros_fill_the_way_to_an_offset(tmp_path: Path) -> None:
    with FileWriter(tmp_path / "file") as file:
        file.write(b"abc")
        file.skip_to(8)
        file.skip_to(8)
        assert file.position == 8
        file.write(b"d")
    assert (tmp_path / "file").read_bytes() == b"abc\0\0\0\0\0d"


def test_a_write_that_the_kernel_takes_in_parts_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    with FileWriter(tmp_path / "file") as file:
        file.write(b"y" * 2_500)
    assert (tmp_path / "file").read_bytes() == b"y" * 2_500


def test_bytes_of_another_file_are_taken_over_and_digested_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.urandom(9_000_000)
    (tmp_path / "other").write_bytes(other)
    send = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda out, source, at, count: send(out, source, at, min(count, 1_000_000)))
    told: list[str] = []
    with (
        (tmp_path / "other").open("rb") as source,
        FileWriter(tmp_path / "f", lambda _, value: told.append(value)) as f,
    ):
        f.write(b"head")
        assert f.take(source.fileno(), 1_000, 5_000_000) == 5_000_000
        f.write(b"between")
        assert f.position == 5_000_011
        assert f.take(source.fileno(), 8_999_000, 5_000) == 1_000, "its end"
        f.write(b"end")
    whole = b"head" + other[1_000:5_001_000] + b"between" + other[8_999_000:] + b"end"
    assert (tmp_path / "f").read_bytes() == whole
    assert told == [hashlib.sha256(whole).hexdigest()]


def test_sending_bytes_to_the_disk_early_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_writer, "FLUSH_BYTES", 1)
    with FileWriter(tmp_path / "file") as file:
        for piece in PIECES:
            file.write(piece)
    assert (tmp_path / "file").read_bytes() == b"".join(PIECES)


def test_a_file_that_was_not_finished_has_no_digest(tmp_path: Path) -> None:
    told: list[str] = []

    def write_half() -> None:
        with FileWriter(tmp_path / "f", lambda _path, value: told.append(value)) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert told == []
