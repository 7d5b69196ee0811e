"""When a file's digest is believed, and what an output consists of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nvlm_trt.pipeline.digest import CACHE_NAME, DigestCache, WrittenDigests, combined, entries_below


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_digest_is_the_sha256_of_the_content_and_is_kept_across_processes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    cache = DigestCache(tmp_path)
    assert cache.peek(file) is None
    assert cache.digest(file) == sha(b"abc")
    cache.save()
    assert DigestCache(tmp_path).peek(file) == sha(b"abc")
    assert (tmp_path / CACHE_NAME).is_file()


def test_a_byte_changed_right_after_the_digest_is_noticed_every_time(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    cache = DigestCache(None)
    for value in range(20):
        file.write_bytes(bytes([value]))
        assert cache.digest(file) == sha(bytes([value]))


def test_putting_the_modification_time_back_hides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    cache = DigestCache(None)
    cache.digest(file)
    before = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.peek(file) is None


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"old")
    from nvlm_trt.pipeline import digest

    hash_file, reads = digest._hash_file, []

    def slow(path: Path, size: int, progress: object) -> str:
        value = hash_file(path, size, None)
        if not reads:
            file.write_bytes(b"newer")
        reads.append(value)
        return value

    monkeypatch.setattr(digest, "_hash_file", slow)
    assert DigestCache(None).digest(file) == sha(b"newer")
    assert len(reads) == 2


def test_files_of_gone_directories_leave_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    cache = DigestCache(tmp_path)
    cache.digest(file)
    file.unlink()
    cache.save()
    assert (tmp_path / CACHE_NAME).read_text() == "{}\n"


def test_progress_over_several_files_adds_up_to_all_bytes_known_or_read(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 30)):
        (tmp_path / name).write_bytes(b"x" * size)
    cache = DigestCache(None)
    cache.digest(tmp_path / "a")
    told: list[tuple[int, int]] = []
    digests = cache.digest_all(tmp_path, ["b", "a"], lambda done, total: told.append((done, total)))
    assert [digest.path for digest in digests] == ["b", "a"]
    assert max(told) == (40, 40)


def test_an_output_is_its_files_links_and_empty_folders_without_byte_code(tmp_path: Path) -> None:
    for folder in ("repo/model/1", "repo/model/__pycache__", "repo/empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "repo/model/1/model.py").write_text("pass")
    (tmp_path / "repo/model/__pycache__/model.pyc").write_bytes(b"\0")
    (tmp_path / "repo/model/link").symlink_to("1")
    (tmp_path / "single").write_text("1")
    names = ["repo/empty", "repo/model/1/model.py", "repo/model/link", "single"]
    assert entries_below(tmp_path, ["single", "repo", "absent"]) == names
    before = DigestCache(None).digest_outputs(tmp_path, ["repo"])
    assert [file.path for file in before] == names[:3]
    (tmp_path / "repo/model/link").unlink()
    (tmp_path / "repo/model/link").symlink_to("2")
    assert combined(DigestCache(None).digest_outputs(tmp_path, ["repo"])) != combined(before)


Moved = tuple[DigestCache, WrittenDigests, Path, Path]


@pytest.fixture
def moved(tmp_path: Path) -> Moved:
    """A file whose (made up) digest was noted when it was written, before it is moved to its place."""
    before, after = tmp_path / "partial", tmp_path / "engine"
    before.mkdir()
    after.mkdir()
    (before / "weights").write_bytes(b"abc")
    written = WrittenDigests()
    written.note(before / "weights", "as it was written")
    return DigestCache(None), written, before, after


def test_a_digest_computed_while_writing_follows_the_file_to_its_place(moved: Moved) -> None:
    cache, written, before, after = moved
    (before / "weights").rename(after / "weights")
    written.hand_over(cache, before, after)
    assert cache.peek(after / "weights") == cache.digest(after / "weights") == "as it was written"


@pytest.mark.parametrize("change", ["content", "touched", "another file", "gone"])
def test_a_digest_computed_while_writing_is_dropped_where_the_file_is_not_as_it_was(moved: Moved, change: str) -> None:
    cache, written, before, after = moved
    file = before / "weights"
    status = file.stat()
    if change == "content":
        file.write_bytes(b"abcd")
    elif change == "touched":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "another file":
        (before / "copy").write_bytes(b"abc")
        (before / "copy").replace(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    if change == "gone":
        file.unlink()
    else:
        file.rename(after / "weights")
    written.hand_over(cache, before, after)
    assert cache.peek(after / "weights") is None


def test_a_cache_that_has_learnt_nothing_is_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    cache = DigestCache(tmp_path)
    cache.digest(tmp_path / "weights")
    cache.save()
    inode = (tmp_path / CACHE_NAME).stat().st_ino
    again = DigestCache(tmp_path)
    assert again.digest(tmp_path / "weights") == sha(b"abc")
    again.save()
    assert (tmp_path / CACHE_NAME).stat().st_ino == inode
