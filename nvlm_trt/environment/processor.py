"""The processor: its name, and which short types it has instructions for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")

INSTRUCTIONS: Final = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"},
}
"""What Linux calls the instructions that multiply a type and add the products, on x86-64 and aarch64."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor.

    Attributes:
        name: As the kernel tells it.
        types: Which of `INSTRUCTIONS` it has.
    """

    name: str
    types: frozenset[str]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Types that are multiplied in float32, or by way of wider integers."""
        return tuple(name for name in INSTRUCTIONS if name not in self.types)

    def __str__(self) -> str:
        """In words."""
        return f"{self.name}, without instructions for {' and '.join(self.lacks)}" if self.lacks else self.name


def processor(cpuinfo: Path = CPUINFO) -> Processor:
    """This machine's; where there is no `cpuinfo`, its architecture and no types."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = {*facts.get("flags", "").split(), *facts.get("Features", "").split()}
    types = frozenset(name for name, instructions in INSTRUCTIONS.items() if instructions & flags)
    return Processor(facts.get("model name", platform.machine()), types)
