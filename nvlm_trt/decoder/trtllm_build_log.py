"""How far trtllm-build is, by what it writes to its log.

A rank passes three phases, each ended by a line (TensorRT-LLM 1.x, tensorrt_llm/builder.py and _common.py): its
weights are loaded and its network is made, TensorRT chooses kernels and builds the engine, the engine is written. Ranks
that are built side by side write to one log; only the line before the last phase names its rank, so phases are counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NETWORK: Final = "Total time of constructing network from module object"
ENGINE: Final = re.compile(r"Total time of building (?!all engines)")
MEMORY: Final = re.compile(r"Build phase peak memory: ([\d.]+) MB")
WRITING: Final = re.compile(r"Serializing engine to \S*?rank(\d+)\.engine")
WRITTEN: Final = "Engine serialized. Total time:"

NETWORK_SHARE: Final = 0.3
ENGINE_SHARE: Final = 0.5
"""Shares of a rank's time that loading weights and building take; writing has the rest.

By the one log of a large model that was found: 30 and 52 of 107 s for 35 billion parameters in fp16 on one GPU.
"""


@dataclass(slots=True)
class BuildLog:
    """What a growing log has told.

    Attributes:
        networks: Ranks whose network is made.
        engines: Ranks whose engine is built, in memory.
        written: Ranks whose engine is in its file.
        memory_bytes: Host memory of the worker that built the last engine, when it was built; 0 before the first.
    """

    networks: int = 0
    engines: int = 0
    written: int = 0
    memory_bytes: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes) -> list[str]:
        """Read on.

        Args:
            data: What the log has grown by; the line that it ends in may be unfinished.

        Returns:
            What a person should be told, one line each.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        told = (self._line(line.decode("utf-8", errors="replace")) for line in lines)
        return [line for line in told if line]

    def _line(self, line: str) -> str | None:
        if NETWORK in line:
            self.networks += 1
        elif ENGINE.search(line):
            self.engines += 1
        elif WRITTEN in line:
            self.written += 1
        elif memory := MEMORY.search(line):
            self.memory_bytes = round(float(memory[1]) * (1 << 20))
        elif writing := WRITING.search(line):
            return f"the engine of rank {writing[1]} is built, with {in_gb(self.memory_bytes)} of host memory"
        return None

    def share(self, index: int, written: float) -> float:
        """How much of a rank's build is done, from 0 to 1.

        Args:
            index: Its place among the ranks in the order in which they are built.
            written: Share of its engine that is in its file.
        """
        if index < self.written:
            return 1.0
        before = NETWORK_SHARE * (index < self.networks) + ENGINE_SHARE * (index < self.engines)
        return before + (1 - NETWORK_SHARE - ENGINE_SHARE) * written

    def doing(self, ranks: int) -> str:
        """What the rank that is furthest from its end is at, in words."""
        if self.written >= ranks:
            return "all engines are written"
        words = "its engine is being written" if self.written < self.engines else "kernels are being chosen"
        if self.written >= self.networks:
            words = "its weights are being loaded"
        return f"{self.written} of {ranks} engines are written, of the next one {words}"


def in_gb(count: int) -> str:
    """Bytes in decimal gigabytes."""
    return f"{count / 1e9:.1f} GB"
