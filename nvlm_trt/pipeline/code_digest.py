"""A digest of the code that a stage's result depends on.

An engine built by older code must be built again, and one built by the same code must not. The version number says
neither while the code is being worked on, and a list of modules kept by hand would be forgotten. So the modules that a
stage names are followed through their imports within nvlm_trt, and what counts is their syntax tree without
docstrings: a comment, a docstring or a line break never costs anybody the hour of a 72B build.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import nvlm_trt

PACKAGE = "nvlm_trt"
_ROOT = Path(nvlm_trt.__file__).parent


def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 (hex) over the syntax trees of `modules` and of all that they import from nvlm_trt.

    Imports inside functions count as well.

    Raises:
        ModuleNotFoundError: a module of `modules` does not exist.
    """
    hasher = hashlib.sha256()
    for name in sorted(closure(modules)):
        hasher.update(f"{name}\0{_tree_text(name)}\0".encode())
    return hasher.hexdigest()


def closure(modules: Iterable[str]) -> frozenset[str]:
    """`modules` and all modules of nvlm_trt that importing them can import."""
    found: set[str] = set()
    waiting = list(modules)
    for name in waiting:
        if _file_of(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in _imports(name) if other not in found]
    return frozenset(found)


def _file_of(module: str) -> Path | None:
    """The source file of a module of nvlm_trt; None where there is no such module."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = _ROOT.joinpath(*parts[1:])
    candidates = (base / "__init__.py", base.with_name(base.name + ".py"))
    return next((path for path in candidates if path.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    path = _file_of(module)
    if path is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    return ast.parse(path.read_bytes())


@cache
def _imports(module: str) -> tuple[str, ...]:
    path = _file_of(module)
    is_package = path is not None and path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    names = set(_parents(module))
    for node in ast.walk(_tree(module)):
        for name in _imported_names(node, package):
            if _file_of(name) is not None:
                names.add(name)
                names.update(_parents(name))
    return tuple(sorted(names))


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


@cache
def _tree_text(module: str) -> str:
    tree = _WithoutDocstrings().visit(ast.parse(ast.unparse(_tree(module))))
    return ast.dump(tree)


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops expression statements that are constants: docstrings, also those of attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
