"""Why trtllm-build failed: the last errors of its log, and what to do about the causes that are known."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nvlm_trt.errors import BuildError

TAIL_BYTES: Final = 256 * 1024
"""Of the log, read from its end; errors come last."""

ERRORS_SHOWN: Final = 5

ERROR_MARK: Final = re.compile(r"\[[EF]\]|\[ERROR\]|\b\w*(Error|Exception)\b|\bKilled\b")
"""TensorRT's and TensorRT-LLM's own marks, Python's exceptions, and the shell's word for a kill."""

HOST_MEMORY: Final = (
    "host memory ran out: build fewer ranks at a time (decoder_engine.workers {fewer}), or on a machine with more of it"
)
CAUSES: Final = (
    (
        ("Version tag does not match", "Serialization assertion"),
        "a file was made by another TensorRT than the one that reads it: remove {timing_cache}, and build and serve in "
        "one image",
    ),
    (
        ("CUDA out of memory", "OutOfMemoryError", "CUDA_ERROR_OUT_OF_MEMORY", "Cuda Runtime (out of memory)"),
        "the GPU's memory ran out: end what else runs on it (nvidia-smi), else lower decoder_engine.max_num_tokens or "
        "max_batch_size",
    ),
    (
        ("CUDA driver version is insufficient", "No CUDA GPUs are available", "Found no NVIDIA driver"),
        "no GPU can be used: start the container with --gpus all, and see nvidia-smi for the driver",
    ),
    (("No space left on device",), "the disk is full: free some space, or move the engine directory"),
    (("process pool was terminated abruptly", "BrokenProcessPool", "MemoryError", "std::bad_alloc"), HOST_MEMORY),
)
"""Words of the log, and what they tell; the first that is met counts."""


def build_failure(code: int, log_path: Path, *, workers: int, timing_cache: Path) -> BuildError:
    """The error for a trtllm-build that ended with a code other than 0.

    Args:
        code: Its exit code; negative for the signal that ended it.
        log_path: What it has written.
        workers: Ranks that were built at a time.
        timing_cache: Times of kernels that it was given.
    """
    lines = _tail(log_path)
    ended = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
    cause = _cause(code, lines)
    known = f"{cause.format(fewer=max(1, workers // 2), timing_cache=timing_cache)}; " if cause else ""
    said = _last_errors(lines)
    return BuildError(
        f"trtllm-build {ended}",
        seen="\n  " + "\n  ".join(said) if said else "nothing in its log",
        fix=f"{known}its log: {log_path}",
    )


def _cause(code: int, lines: Sequence[str]) -> str | None:
    for words, cause in CAUSES:
        if any(word in line for line in lines for word in words):
            return cause
    # The kernel's own killing leaves no word in the log; a shell above reports it as 128 + 9.
    return HOST_MEMORY if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else None


def _last_errors(lines: Sequence[str]) -> Sequence[str]:
    """The last lines that look like errors; where none does, simply the last ones."""
    known = [word for words, _ in CAUSES for word in words]
    errors = [line for line in lines if ERROR_MARK.search(line) or any(word in line for word in known)]
    return (errors or lines)[-ERRORS_SHOWN:]


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
