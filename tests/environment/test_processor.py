"""Which types a processor has instructions for, by what Linux tells of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from nvlm_trt.environment.processor import processor

XEON = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: avx512_vnni amx_bf16\n\nprocessor\t: 1\nmodel name\t: X\n"


@pytest.mark.parametrize(
    ("cpuinfo", "types", "words"),
    [
        (XEON, {"bf16", "int8"}, "Xeon"),
        ("model name : Lake\nflags : avx2 avx_vnni\n", {"int8"}, "Lake, without instructions for bf16"),
        ("model name : Milan\nflags : avx2\n", set(), "Milan, without instructions for bf16 and int8"),
        ("Features : fp asimd asimddp bf16\n", {"bf16", "int8"}, platform.machine()),
    ],
)
def test_types_are_those_of_the_flags(tmp_path: Path, cpuinfo: str, types: set[str], words: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    seen = processor(tmp_path / "cpuinfo")
    assert (seen.types, str(seen)) == (types, words)


def test_without_cpuinfo_the_architecture_is_known(tmp_path: Path) -> None:
    assert processor(tmp_path / "none").name == platform.machine()
