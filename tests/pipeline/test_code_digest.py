"""Which changes of the code count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nvlm_trt.pipeline import code_digest
from nvlm_trt.pipeline.code_digest import CACHE_NAME, CodeDigests


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in the place of nvlm_trt: a imports b at its top, b imports c in a function, d stands alone."""
    files = {
        "__init__.py": "",
        "a.py": '"""A."""\nfrom nvlm_trt import b\n\nVALUE = b.VALUE\n',
        "b.py": "def late() -> int:\n    from .sub.c import C\n\n    return C\n",
        "sub/__init__.py": "",
        "sub/c.py": "C = 3\n",
        "d.py": "D = 4\n",
    }
    for name, text in files.items():
        file = tmp_path / "package" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    return tmp_path / "package"


def digest_of(package: Path) -> str:
    """The digest of module a, found with what earlier calls have kept beside the package."""
    digests = CodeDigests(package.parent, package)
    value = digests.digest(["nvlm_trt.a"])
    digests.save()
    return value


def digest_after(file: Path, text: str) -> str:
    file.write_text(text)
    return digest_of(file.parent if file.parent.name == "package" else file.parent.parent)


def test_closure_follows_imports_also_those_in_functions(package: Path) -> None:
    names = {"nvlm_trt", "nvlm_trt.a", "nvlm_trt.b", "nvlm_trt.sub", "nvlm_trt.sub.c"}
    assert CodeDigests(None, package).closure(["nvlm_trt.a"]) == names


def test_code_of_any_imported_module_counts_and_other_modules_do_not(package: Path) -> None:
    before = digest_of(package)
    assert digest_after(package / "d.py", "D = 5\n") == before
    assert digest_after(package / "sub/c.py", "C = 4\n") != before


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = digest_of(package)
    text = (
        '"""Another text."""\n\n# a remark\nfrom nvlm_trt import (\n    b,\n)\n\nVALUE = b.VALUE\n"""What it is."""\n'
    )
    assert digest_after(package / "a.py", text) == before


def test_an_unknown_module_is_refused(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        CodeDigests(None, package).digest(["nvlm_trt.nothing"])


def test_real_stages_depend_on_the_modules_that_do_their_work() -> None:
    found = CodeDigests(None).closure(["nvlm_trt.vision.export"])
    assert {"nvlm_trt.vision.graph", "nvlm_trt.model.checkpoint", "nvlm_trt.model.tensors"} <= found
    assert "nvlm_trt.decoder.engine" not in found


def test_what_is_kept_gives_the_same_digest_without_parsing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(package)

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a source was parsed")

    monkeypatch.setattr(code_digest, "_read", refuse)
    assert digest_of(package) == before


def test_an_edit_of_equal_size_and_modification_time_counts(package: Path) -> None:
    before, file = digest_of(package), package / "sub" / "c.py"
    stamp = file.stat()
    file.write_text("C = 4\n")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest_of(package) != before


def test_a_new_module_under_a_name_that_was_imported_counts_although_no_kept_source_changed(package: Path) -> None:
    (package / "a.py").write_text("from nvlm_trt.sub import late\n")
    before = digest_of(package)
    assert digest_after(package / "sub" / "late.py", "LATE = 1\n") != before
    assert "nvlm_trt.sub.late" in CodeDigests(package.parent, package).closure(["nvlm_trt.a"])


@pytest.mark.parametrize("damage", ["{ damaged", "[]", '{"reading": "by another Python", "sources": {}}'])
def test_what_is_kept_is_only_believed_where_it_can_be_read(package: Path, damage: str) -> None:
    before = digest_of(package)
    (package.parent / CACHE_NAME).write_text(damage)
    assert digest_of(package) == before
    assert json.loads((package.parent / CACHE_NAME).read_text())["sources"]
