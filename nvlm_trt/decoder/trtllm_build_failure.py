"""Why trtllm-build failed: the last errors of its log, and what to do about the causes that are known."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nvlm_trt.decoder.trtllm_build_command import HOST_COPIES
from nvlm_trt.errors import BuildError

TAIL_BYTES: Final = 256 * 1024
"""Of the log, read from its end; errors come last."""

ERRORS_SHOWN: Final = 5

ERROR_MARK: Final = re.compile(r"\[[EF]\]|\[ERROR\]|\b\w*(Error|Exception)\b|\bKilled\b")
"""TensorRT's and TensorRT-LLM's own marks, Python's exceptions, and the shell's word for a kill."""

HOST_MEMORY: Final = "host memory ran out, as it seems: {relief}"
CAUSES: Final = tuple(
    (re.compile(words), cause)
    for words, cause in (
        (r"No space left on device", "the disk is full: free some space, or move the engine directory"),
        (
            r"CUDA driver version is insufficient|No CUDA GPUs are available|no CUDA-capable device|"
            r"Found no NVIDIA driver",
            "no GPU can be used: start the container with --gpus all, and see nvidia-smi for the driver",
        ),
        (
            r"Version tag does not match|Serialization assertion",
            "a file was made by another TensorRT than the one that reads it: remove {timing_cache}, and build and "
            "serve in one image",
        ),
        (
            r"error: unrecognized arguments|error: argument .*invalid",
            "this trtllm-build is of another release than TensorRT-LLM 1.2: run it inside the pinned image",
        ),
        (
            r"is not supported on SM ?>=? ?1\d\d",
            "this GPU (Blackwell of the data centre) runs bf16 and fp8 alone: choose another decoder_precision or "
            "kv_cache_precision",
        ),
        (
            r"NCCL error|ncclSystemError|ncclUnhandledCudaError|libnccl\.so",
            "NCCL does not work here: start the container with --ipc=host, and see what NCCL_DEBUG=WARN tells",
        ),
        (
            r"process pool was terminated abruptly|BrokenProcessPool|\bMemoryError\b|std::bad_alloc|"
            r"Cannot allocate memory|DefaultCPUAllocator",
            HOST_MEMORY,
        ),
        (
            r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|Cuda Runtime \(out of memory\)|"
            r"Error Code 2: OutOfMemory|Could not find any implementation for node",
            "the GPU's memory ran out, as it seems: end what else runs on it (nvidia-smi), else lower "
            "decoder_engine.max_num_tokens or max_batch_size",
        ),
    )
)
"""Words of the log, and what they tell; the first cause that is met counts.

The GPU's memory comes last: TensorRT complains of it for kernels that it tries, and goes on with another one.
"""


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
    known = f"{cause.format(relief=_relief(workers), timing_cache=timing_cache)}; " if cause else ""
    said = _last_errors(lines)
    return BuildError(
        f"trtllm-build {ended}",
        seen="\n  " + "\n  ".join(said) if said else "nothing in its log",
        fix=f"{known}its log: {log_path}",
    )


def _relief(workers: int) -> str:
    """How to need less host memory."""
    if workers > 1:
        return f"build fewer ranks at a time (decoder_engine.workers {workers // 2}), or on a machine with more of it"
    return f"one rank takes about {HOST_COPIES} times the bytes of its weights; build on a machine with more of it"


def _cause(code: int, lines: Sequence[str]) -> str | None:
    # The kernel's own killing leaves no word in the log; a shell above reports it as 128 + 9.
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return HOST_MEMORY
    return next((cause for words, cause in CAUSES if any(words.search(line) for line in lines)), None)


def _last_errors(lines: Sequence[str]) -> Sequence[str]:
    """The last lines that look like errors; where none does, simply the last ones."""
    marks = (ERROR_MARK, *(words for words, _ in CAUSES))
    errors = [line for line in lines if any(mark.search(line) for mark in marks)]
    return (errors or lines)[-ERRORS_SHOWN:]


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
