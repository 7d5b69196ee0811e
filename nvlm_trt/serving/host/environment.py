"""The tritonserver of the nvidia-pytriton wheel: where it is, and what it needs around it.

The wheel's Python backend runs models in a stub program with an interpreter of its own, which ignores PYTHONPATH and
finds its packages by the first ``python3`` on PATH; with numpy 2 there it corrupts every tensor without a word.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.errors import EngineError

WHEEL = "nvidia-pytriton"


@dataclass(frozen=True, slots=True)
class Triton:
    """An installed tritonserver.

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
            raise EngineError("tritonserver is not installed", fix=f"pip install 'nvlm-trt[cpu]' (it brings {WHEEL})")
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

    def prepare_backends(self, directory: Path) -> None:
        """Fill a backend directory: links to the wheel's files, with the stub where the backend looks for it."""
        python = directory / "python"
        python.mkdir(parents=True)
        for file in (*self.backend.iterdir(), self.stub):
            if file.is_file():
                (python / file.name).symlink_to(file)

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The server's environment: ours, with this interpreter first on PATH, the libraries, and `extra`."""
        environment = dict(os.environ)
        _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
        _prepend(environment, "LD_LIBRARY_PATH", [str(library) for library in self.libraries])
        environment.pop("PYTHONHOME", None)
        return {**environment, **extra}


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


def _prepend(environment: dict[str, str], name: str, entries: list[str]) -> None:
    environment[name] = os.pathsep.join([*entries, *filter(None, [environment.get(name)])])
