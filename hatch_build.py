"""Build hook: compiles the resizing kernel into the wheel, or beside its source where the install is editable.

Without a C compiler, or on another processor, the package is installed without the kernel: Pillow resizes then, slower.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

KERNEL = Path("nvlm_trt/model/_resize.so")


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the kernel to what is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with a kernel is for this platform, but for any Python."""
        build = _resize_build(Path(self.root))
        self._folder = tempfile.TemporaryDirectory(prefix="nvlm-trt-kernel-")
        editable = version == "editable"
        library = Path(self.root, KERNEL) if editable else Path(self._folder.name, KERNEL.name)
        try:
            build.compile_kernel(library)
        except build.KernelBuildError as reason:
            self.app.display_warning(f"the resizing kernel was not built, Pillow resizes instead: {reason}")
            return
        if not editable:
            build_data["force_include"][str(library)] = str(KERNEL)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for the wheel."""
        self._folder.cleanup()


def _resize_build(root: Path) -> ModuleType:
    """The module that compiles, without the package around it: its dependencies are not installed here."""
    spec = importlib.util.spec_from_file_location("resize_build", root / "nvlm_trt/model/resize_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform() -> str:
    """This platform; the tags that promise old C libraries are for wheels that were checked against those."""
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))
