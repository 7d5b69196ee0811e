"""Lines that survive a kill, and one writer at a time."""

from __future__ import annotations

import errno
import io
import json

import pytest

from nvlm_trt.errors import BusyError, UserError
from nvlm_trt.growing_file import GrowingFile, whole_lines


def opened(path, **options):
    return GrowingFile(path, path.with_name("lock"), writer="test", **options)


def test_lines_are_added_and_found_again(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    for text in ("a", "é\n\u2028"):
        with opened(path, durable=True) as file:
            file.append({"text": text})
    with opened(path) as file:
        assert [json.loads(line)["text"] for line in file.lines()] == ["a", "é\n\u2028"]


@pytest.mark.parametrize("torn", [b'{"id"', b'{"id": 2}', b"x" * 200_000])
def test_a_line_that_a_kill_cut_off_is_left_out_and_removed(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"id": 1}\n' + torn)
    assert list(whole_lines(path)) == [b'{"id": 1}\n']
    with opened(path) as file:
        file.cut()
        file.append(3)
    assert path.read_bytes() == b'{"id": 1}\n3\n'


def test_a_file_that_is_one_cut_off_line_becomes_empty(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"x" * 200_000)
    with opened(path) as file:
        file.cut()
    assert path.read_bytes() == b""


def test_some_lines_are_kept(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"1\n2\n3\n4")
    with opened(path) as file:
        file.keep(lambda line: line != b"2\n")
        file.append(5)
    assert path.read_bytes() == b"1\n3\n5\n"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"lines.jsonl", "lock"}


def test_two_do_not_write_one_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    with opened(path), pytest.raises(BusyError, match="another test writes here"):
        opened(path)
    opened(path).close()


class Full(io.FileIO):
    """A disk that takes in three more bytes."""

    def write(self, data):
        if len(data) > 3:
            return super().write(bytes(data[:3]))
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_it(tmp_path):
    path = tmp_path / "lines.jsonl"
    with opened(path) as file:
        file.append("first")
        file._file.close()
        file._file = Full(path, "ab")
        with pytest.raises(UserError, match=r"cannot be written \(No space left"):
            file.append("12")
    assert path.read_bytes() == b'"first"\n'


def test_a_file_that_cannot_be_written_is_the_callers_mistake(tmp_path):
    with pytest.raises(UserError, match="output of the test cannot be written"):
        opened(tmp_path)
