"""Arrows point one way: no module of the package imports from a layer above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import nvlm_trt

PACKAGE: Final = "nvlm_trt"
ROOT: Final = Path(nvlm_trt.__file__).parent

LAYERS: Final = (
    "errors",
    "error_codes",
    "logs",
    "guarded",
    "loopback",
    "durable",
    "parsed",
    "progress",
    "turns",
    "collector",
    "tracing",
    "triton_streams",
    "jsonl",
    "growing_file",
    "datasheets",
    "environment",
    "model",
    "recipe",
    "engine_files",
    "calibration",
    "miniature",
    "decoder",
    "vision",
    "local",
    "emulation",
    "serving",
    "client",
    "gateway",
    "top",
    "eval",
    "verify",
    "pipeline",
    "plan",
    "host",
    "doctor",
    "subjects",
    "bench",
    "cli",
)
"""The modules and packages at the top of nvlm_trt, the lowest first: each imports from those before it, and itself."""


def members(root: Path) -> set[str]:
    """What lies at the top of a package."""
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    return packages | {path.stem for path in root.glob("*.py") if path.stem != "__init__"}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Lines and members of nvlm_trt that any import statement names, in a function or for types alone as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; the package names its modules in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, inside in (name.partition(".") for name in names):
            if package == PACKAGE and inside:
                yield node.lineno, inside.partition(".")[0]


def upward(root: Path, layers: tuple[str, ...]) -> list[str]:
    """Imports that point to a later layer, with the file and line of each."""
    places = {name: place for place, name in enumerate(layers)}
    found = []
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        for line, name in imported(path.read_text(encoding="utf-8")):
            if name in places and places[name] > places.get(own, -1):
                found.append(f"{path.relative_to(root.parent)}:{line} imports {name}, which is above {own}")
    return found


def test_every_member_of_the_package_has_its_layer() -> None:
    assert sorted(LAYERS) == sorted(members(ROOT)), "LAYERS names each member of the package once"


def test_imports_point_to_lower_layers() -> None:
    found = upward(ROOT, LAYERS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "statement",
    [
        "import nvlm_trt.high",
        "from nvlm_trt import high",
        "from nvlm_trt.high import thing",
        "from nvlm_trt.high.part import thing",
        "def late():\n    from nvlm_trt.high import thing",
        "if TYPE_CHECKING:\n    from nvlm_trt.high import thing",
    ],
)
def test_an_import_upward_is_found_in_every_form(tmp_path: Path, statement: str) -> None:
    root = tmp_path / PACKAGE
    (root / "low").mkdir(parents=True)
    harmless = "from nvlm_trt import __version__\nfrom nvlm_trt.low import x\n"
    (root / "low" / "module.py").write_text(harmless + statement)
    (root / "high.py").write_text("from nvlm_trt.low import thing")
    (found,) = upward(root, ("low", "high"))
    assert found.startswith("nvlm_trt/low/module.py:")
    assert found.endswith(" imports high, which is above low")
