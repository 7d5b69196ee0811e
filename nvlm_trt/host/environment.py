"""The installed tritonserver: where it is, and what it needs around it.

The cpu target is served by the one of the nvidia-pytriton wheel, the gpu target by NVIDIA's container image, which has
the backends tensorrt and tensorrtllm. Either's Python backend runs models in a stub program with an interpreter of its
own, which ignores PYTHONPATH and finds its packages by the first ``python3`` on PATH.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nvlm_trt.environment.versions import PINNED_IMAGE
from nvlm_trt.errors import EngineError, installing

WHEEL = "nvidia-pytriton"
IMAGE: Final = Path("/opt/tritonserver")
"""Where NVIDIA's images have tritonserver."""


class Installation(Protocol):
    """An installed tritonserver."""

    @property
    def binary(self) -> Path:
        """The server."""

    @property
    def limits_bodies(self) -> bool:
        """Whether it refuses HTTP bodies beyond a limit (since 25.07, of 64 MB unless told another one)."""

    def prepare_backends(self, directory: Path) -> Path:
        """The directory of its backends; one that has to be put together is made at `directory`."""

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The server's environment, with `extra`."""


def find_installation(target: str) -> Installation:
    """The tritonserver that serves a target.

    Args:
        target: "cpu" or "gpu".

    Raises:
        EngineError: there is none, or it cannot run in this environment.
    """
    return Triton.find() if target == "cpu" else ImageTriton.find()


@dataclass(frozen=True, slots=True)
class Triton:
    """The tritonserver of the wheel.

    With numpy 2 its Python backend corrupts every tensor without a word.

    Attributes:
        binary: The server.
        backend: The Python backend's directory.
        stub: The Python backend's program for this interpreter's version.
        caches: Directory of response caches.
        libraries: Directories of shared libraries that they need.
    """

    binary: Path
    backend: Path
    stub: Path
    caches: Path
    libraries: tuple[Path, ...]

    @classmethod
    def find(cls) -> Triton:
        """Find the wheel in this environment.

        Raises:
            EngineError: it is not installed, has no stub for this Python, or numpy is too new for it.
        """
        check_numpy(importlib.metadata.version("numpy"))
        found = importlib.util.find_spec("pytriton")
        if found is None or found.origin is None:
            raise EngineError("tritonserver is not installed", fix=f"{installing('cpu')} (it brings {WHEEL})")
        root = Path(found.origin).parent / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.is_file():
            raise EngineError("tritonserver has no stub for this Python", seen=version, fix="use Python 3.11 or 3.12")
        return cls(
            binary=root / "bin" / "tritonserver",
            backend=root / "backends" / "python",
            stub=stub,
            caches=root / "caches",
            libraries=(
                root.parents[1] / "nvidia_pytriton.libs",
                Path(str(sysconfig.get_config_var("LIBDIR"))),
            ),
        )

    @property
    def limits_bodies(self) -> bool:
        """2.51 (24.10) has no limit."""
        return False

    def prepare_backends(self, directory: Path) -> Path:
        """Fill a backend directory: links to the wheel's files, with the stub where the backend looks for it."""
        python = directory / "python"
        python.mkdir(parents=True)
        for file in (*self.backend.iterdir(), self.stub):
            if file.is_file():
                (python / file.name).symlink_to(file)
        return directory

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The server's environment: ours, with this interpreter first on PATH, the libraries, and `extra`."""
        environment = _with_this_python()
        _prepend(environment, "LD_LIBRARY_PATH", [str(library) for library in self.libraries])
        return {**environment, **extra}


@dataclass(frozen=True, slots=True)
class ImageTriton:
    """The tritonserver of NVIDIA's image.

    Attributes:
        root: Where it lies.
    """

    root: Path

    @classmethod
    def find(cls, root: Path = IMAGE) -> ImageTriton:
        """Find it.

        Raises:
            EngineError: it is not there, or lacks a backend of the gpu target.
        """
        for part in ("bin/tritonserver", "backends/tensorrtllm", "backends/tensorrt", "backends/python"):
            if not (root / part).exists():
                fix = f"serve gpu engines inside the image {PINNED_IMAGE} (docs/deployment.md)"
                raise EngineError("this machine has no tritonserver for gpu engines", seen=f"no {root / part}", fix=fix)
        return cls(root)

    @property
    def binary(self) -> Path:
        """The server."""
        return self.root / "bin" / "tritonserver"

    @property
    def limits_bodies(self) -> bool:
        """Servers from 25.07 on have a limit."""
        return True

    def prepare_backends(self, directory: Path) -> Path:
        """The image's own backends."""
        return self.root / "backends"

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The server's environment: ours, with this interpreter first on PATH, and `extra`."""
        return {**_with_this_python(), **extra}


def check_numpy(version: str) -> None:
    """Refuse a numpy with which the backend corrupts tensors.

    Raises:
        EngineError: the version is 2 or later.
    """
    if int(version.partition(".")[0]) >= 2:
        raise EngineError(
            "numpy 2 corrupts every tensor in this tritonserver's Python backend",
            seen=f"numpy {version}",
            expected="numpy 1.26",
            fix="pip install 'numpy<2'",
        )


def _with_this_python() -> dict[str, str]:
    environment = dict(os.environ)
    _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
    environment.pop("PYTHONHOME", None)
    return environment


def _prepend(environment: dict[str, str], name: str, entries: list[str]) -> None:
    environment[name] = os.pathsep.join([*entries, *filter(None, [environment.get(name)])])
