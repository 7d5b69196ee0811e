"""One thing that was found out about this machine, and what depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Goal = Literal["build_cpu", "serve_cpu", "build_gpu", "serve_gpu"]

EVERYTHING: Final[tuple[Goal, ...]] = ("build_cpu", "serve_cpu", "build_gpu", "serve_gpu")
BUILD: Final[tuple[Goal, ...]] = ("build_cpu", "build_gpu")
SERVE: Final[tuple[Goal, ...]] = ("serve_cpu", "serve_gpu")
CPU: Final[tuple[Goal, ...]] = ("build_cpu", "serve_cpu")
GPU: Final[tuple[Goal, ...]] = ("build_gpu", "serve_gpu")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        seen: What was found, in words.
        ok: Whether it is as it has to be.
        needed_for: What cannot be done without it.
        remark: What follows, or what to do.
    """

    name: str
    seen: str
    ok: bool
    needed_for: tuple[Goal, ...]
    remark: str = ""
