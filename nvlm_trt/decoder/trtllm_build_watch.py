"""Tells how far a running trtllm-build is, and that it still runs where it says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nvlm_trt.decoder.trtllm_build_log import BuildLog, in_gb
from nvlm_trt.progress import Log, Progress

QUIET_SECONDS: Final = 180.0
"""A build that has written nothing to its log for so long is told about, and again after as long: it is no fault."""


class BuildWatch:
    """Looks at what lies on the disk: the engines, and what the log has grown by.

    Args:
        out_dir: Where the engines appear.
        log_path: The log; it need not be there yet.
        ranks: Bytes of the weights of each rank by the name of its engine, in the order of the ranks.
        progress: Called with (bytes of weights that are built, bytes of all).
        log: Told a line for each engine that is built, and one every few minutes of silence.
    """

    def __init__(
        self,
        out_dir: Path,
        log_path: Path,
        ranks: Mapping[str, int],
        progress: Progress,
        log: Log,
    ) -> None:
        self._out_dir = out_dir
        self._log_path = log_path
        self._ranks = ranks
        self._progress = progress
        self._log = log
        self._read = BuildLog()
        self._log_bytes = 0
        self._spoke = self._told = 0.0

    def look(self, seconds: float, memory: Callable[[], int]) -> None:
        """Look once.

        Args:
            seconds: Since the start.
            memory: Bytes of host memory that the build holds; asked only when there is something to tell.
        """
        news = self._news()
        if news:
            self._spoke = self._told = seconds
        for line in self._read.feed(news):
            self._log(line)
        shares = (
            round(size * self._read.share(index, min(1.0, _size(self._out_dir / name) / size)))
            for index, (name, size) in enumerate(self._ranks.items())
        )
        self._progress(sum(shares), sum(self._ranks.values()))
        if seconds - self._told >= QUIET_SECONDS:
            self._told = seconds
            self._log(
                f"trtllm-build runs for {seconds / 60:.0f} min and holds {in_gb(memory())} of host memory: "
                f"{self._read.doing(len(self._ranks))}; nothing in its log for {(seconds - self._spoke) / 60:.0f} min"
            )

    def _news(self) -> bytes:
        """What the log has grown by."""
        if _size(self._log_path) == self._log_bytes:
            return b""
        with self._log_path.open("rb") as file:
            file.seek(self._log_bytes)
            news = file.read()
        self._log_bytes += len(news)
        return news


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
