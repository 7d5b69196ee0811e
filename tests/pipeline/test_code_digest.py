"""Which changes of the code count."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.pipeline import code_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_digest, "_ROOT", tmp_path)
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def forget() -> None:
    for function in (code_digest._tree, code_digest._imports, code_digest._tree_text):
        function.cache_clear()


def digest_after(file: Path, text: str) -> str:
    file.write_text(text)
    forget()
    return code_digest.code_digest(["nvlm_trt.a"])


def test_closure_follows_imports_also_those_in_functions(package: Path) -> None:
    names = {"nvlm_trt", "nvlm_trt.a", "nvlm_trt.b", "nvlm_trt.sub", "nvlm_trt.sub.c"}
    assert code_digest.closure(["nvlm_trt.a"]) == names


def test_code_of_any_imported_module_counts_and_other_modules_do_not(package: Path) -> None:
    before = code_digest.code_digest(["nvlm_trt.a"])
    assert digest_after(package / "d.py", "D = 5\n") == before
    assert digest_after(package / "sub/c.py", "C = 4\n") != before


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = code_digest.code_digest(["nvlm_trt.a"])
    text = (
        '"""Another text."""\n\n# a remark\nfrom nvlm_trt import (\n    b,\n)\n\nVALUE = b.VALUE\n"""What it is."""\n'
    )
    assert digest_after(package / "a.py", text) == before


def test_an_unknown_module_is_refused(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        code_digest.code_digest(["nvlm_trt.nothing"])


def test_real_stages_depend_on_the_modules_that_do_their_work() -> None:
    forget()
    found = code_digest.closure(["nvlm_trt.vision.export"])
    assert {"nvlm_trt.vision.graph", "nvlm_trt.model.checkpoint", "nvlm_trt.model.tensors"} <= found
    assert "nvlm_trt.decoder.engine" not in found
