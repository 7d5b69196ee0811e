"""A kernel is used if it is of this source, runs on this CPU, and does what the installed Pillow does."""

from __future__ import annotations

import shutil
from pathlib import Path

import PIL
import pytest

from nvlm_trt.model import resize_build
from nvlm_trt.model.resize_build import LIBRARY, KernelBuildError, compile_kernel
from nvlm_trt.model.resize_kernel import ORDERS, Order, load_kernel

SERIES = ".".join(PIL.__version__.split(".")[:2])


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
    if SERIES in ORDERS:
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


@pytest.mark.parametrize("order", set(ORDERS.values()), ids=lambda order: order.__name__)
def test_an_order_that_is_not_the_installed_pillow_s_is_found_out(
    built: Path, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    if load_kernel(built).kernel is None:
        pytest.skip(load_kernel(built).reason)
    right = ORDERS[SERIES]
    monkeypatch.setitem(ORDERS, SERIES, order)
    status = load_kernel(built)
    assert (status.kernel is not None) == (order is right)
    assert order is right or "Pillow differs" in status.reason


def test_a_pillow_that_nobody_compared_resizes_itself(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL, "__version__", "99.1.0")
    status = load_kernel(built)
    assert status.kernel is None
    assert status.reason in ("it was not compared with Pillow 99.1.0", "the CPU has no AVX2")


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
