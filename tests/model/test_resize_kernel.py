"""A kernel is used if it is of this source, runs on this CPU, and does what the installed Pillow does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nvlm_trt.model import resize_build, resize_kernel
from nvlm_trt.model.resize_build import LIBRARY, KernelBuildError, compile_kernel
from nvlm_trt.model.resize_kernel import load_kernel, never, where_rows_go


@pytest.fixture
def built(tmp_path: Path) -> Path:
    library = tmp_path / LIBRARY.name
    try:
        compile_kernel(library)
    except KernelBuildError as reason:
        pytest.skip(f"the kernel cannot be compiled here: {reason}")
    return library


def test_a_kernel_just_compiled_is_used_or_the_cpu_is_to_blame(built: Path) -> None:
    status = load_kernel(built)
    assert (status.kernel is not None) == (status.reason == "")
    assert status.reason in ("", "the CPU has no AVX2")


def test_compiling_leaves_nothing_but_the_library(built: Path) -> None:
    assert [file.name for file in built.parent.iterdir()] == [LIBRARY.name]


def test_without_a_library_pillow_resizes(tmp_path: Path) -> None:
    status = load_kernel(tmp_path / "absent.so")
    assert status.kernel is None
    assert "not compiled" in status.reason


def test_a_file_that_is_no_library_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "broken.so"
    file.write_bytes(b"\x7fELF and nothing more")
    assert "cannot be loaded" in load_kernel(file).reason


def test_a_library_of_another_source_is_not_used(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "changed.c"
    changed.write_bytes(resize_build.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(resize_build, "SOURCE", changed)
    assert "another source" in load_kernel(built).reason


def test_a_kernel_that_differs_from_the_installed_pillow_is_not_used(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load_kernel(built).kernel is None:
        pytest.skip("this CPU cannot run the kernel")
    for order in (lambda *sizes: True, lambda *sizes: not where_rows_go(*sizes)):
        monkeypatch.setattr(resize_kernel, "ORDERS", (order,))
        status = load_kernel(built)
        assert status.kernel is None
        assert "Pillow" in status.reason


def test_the_probes_tell_the_orders_apart() -> None:
    orders = [where_rows_go(*probe) for probe in resize_kernel.PROBES]
    assert True in orders
    assert orders != [never(*probe) for probe in resize_kernel.PROBES]


def test_without_a_compiler_there_is_a_reason_and_the_old_library_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "old.so"
    library.write_bytes(b"old")
    monkeypatch.setattr(resize_build.platform, "machine", lambda: "x86_64")
    for compiler, reason in (("/nonexistent/cc", "no C compiler"), (shutil.which("false") or "false", "failed")):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(KernelBuildError, match=reason):
            compile_kernel(library)
    assert library.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [library]


def test_other_processors_have_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize_build.platform, "machine", lambda: "aarch64")
    with pytest.raises(KernelBuildError, match="aarch64"):
        compile_kernel(tmp_path / "kernel.so")
