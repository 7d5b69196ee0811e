"""A digest of the code that a stage's result depends on.

An engine built by older code must be built again, and one built by the same code must not. The version number says
neither while the code is being worked on, and a list of modules kept by hand would be forgotten. So the modules that a
stage names are followed through their imports within nvlm_trt, and what counts is their syntax tree without
docstrings: a comment, a docstring or a line break never costs anybody the hour of a 72B build.

Parsing a hundred modules takes a second, so what was found in a source file is kept under the digest of its bytes. The
files themselves are read every time: nothing is believed that their bytes do not say.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nvlm_trt
from nvlm_trt.durable import write_atomic

PACKAGE: Final = "nvlm_trt"
ROOT: Final = Path(nvlm_trt.__file__).parent
CACHE_NAME: Final = ".code.json"

READING: Final = f"1 {sys.version}"
"""How a source is read: another Python may make another tree of it."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What counts of a source file.

    Attributes:
        tree: SHA-256 (hex) of its syntax tree without docstrings.
        names: Whatever its import statements name, modules or not.
    """

    tree: str
    names: tuple[str, ...]


class CodeDigests:
    """Digests of modules of nvlm_trt with all that they import.

    Args:
        folder: Where what was found in sources is kept, in `.code.json`; None, or one that is absent, keeps nothing.
        root: The folder of the package.
    """

    def __init__(self, folder: Path | None, root: Path = ROOT) -> None:
        self._path = None if folder is None else folder / CACHE_NAME
        self._root = root
        self._kept = {} if self._path is None else _load(self._path)
        self._used: dict[str, _Source] = {}
        self._modules: dict[str, _Source] = {}
        self._files: dict[str, Path | None] = {}

    def digest(self, modules: Iterable[str]) -> str:
        """SHA-256 (hex) over the syntax trees of `modules` and of all that they import from nvlm_trt.

        Imports inside functions count as well.

        Raises:
            ModuleNotFoundError: a module of `modules` does not exist.
        """
        hasher = hashlib.sha256()
        for name in sorted(self.closure(modules)):
            hasher.update(f"{name}\0{self._source(name).tree}\0".encode())
        return hasher.hexdigest()

    def closure(self, modules: Iterable[str]) -> frozenset[str]:
        """`modules` and all modules of nvlm_trt that importing them can import."""
        found: set[str] = set()
        waiting = list(modules)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += _parents(name)
                waiting += [other for other in self._source(name).names if self._file_of(other) is not None]
        return frozenset(found)

    def save(self) -> None:
        """Keep what was found, if some of it is new; what was not asked for is forgotten."""
        if self._path is not None and self._used.keys() - self._kept.keys() and self._path.parent.is_dir():
            sources = {key: [source.tree, *source.names] for key, source in sorted(self._used.items())}
            write_atomic(self._path, (json.dumps({"reading": READING, "sources": sources}, indent=0) + "\n").encode())
            self._kept = dict(self._used)

    def _source(self, module: str) -> _Source:
        """What counts of a module; each file is read once by one value of this class."""
        if module not in self._modules:
            path = self._file_of(module)
            if path is None:
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)
            data = path.read_bytes()
            is_package = path.name == "__init__.py"
            key = hashlib.sha256(f"{module}\0{is_package}\0".encode() + data).hexdigest()
            source = self._kept.get(key) or _read(data, module if is_package else module.rpartition(".")[0])
            self._used[key] = self._modules[module] = source
        return self._modules[module]

    def _file_of(self, module: str) -> Path | None:
        """The source file of a module of nvlm_trt; None where there is no such module."""
        if module not in self._files:
            parts = module.split(".")
            base = self._root.joinpath(*parts[1:])
            candidates = (base / "__init__.py", base.with_name(base.name + ".py")) if parts[0] == PACKAGE else ()
            self._files[module] = next((path for path in candidates if path.is_file()), None)
        return self._files[module]


def _read(data: bytes, package: str) -> _Source:
    tree = ast.parse(data)
    names = {name for node in ast.walk(tree) for name in _imported_names(node, package)}
    bare = _WithoutDocstrings().visit(ast.parse(ast.unparse(tree)))
    own = tuple(sorted(name for name in names if name.partition(".")[0] == PACKAGE))
    return _Source(hashlib.sha256(ast.dump(bare).encode()).hexdigest(), own)


def _imported_names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = importlib.util.resolve_name("." * node.level + base, package)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)  # the name may be a module


def _parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _load(path: Path) -> dict[str, _Source]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["reading"] != READING:
            return {}
        return {key: _Source(str(tree), tuple(map(str, names))) for key, (tree, *names) in kept["sources"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops expression statements that are constants: docstrings, also those of attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
