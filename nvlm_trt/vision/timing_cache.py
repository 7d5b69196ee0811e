"""TensorRT's timing cache: what kernels were measured to take, kept in a file that builds share.

A cache is of one TensorRT build and one GPU model. A file of another one is set aside, not used and not lost: it would
bring wrong times. A cache saves time and nothing else, so no fault of it stops a build.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from nvlm_trt.progress import Log
from nvlm_trt.vision.tensorrt_callbacks import Callbacks


def attach(config: Any, path: Path, callbacks: Callbacks, log: Log) -> None:
    """Let a build take times from the file and collect new ones.

    Args:
        config: TensorRT's IBuilderConfig.
        path: The file; it need not exist.
        callbacks: What TensorRT's logger writes to.
        log: Told one line if the file does not fit.
    """
    try:
        stored = _read(path)
    except OSError as error:
        log(f"the timing cache {path} cannot be read ({error.strerror}): the build starts with an empty one")
        stored = b""
    if stored:
        if _taken(config, stored, callbacks, lambda cache: config.set_timing_cache(cache, ignore_mismatch=False)):
            return
        log(f"the timing cache {path} is of another TensorRT or GPU, or damaged: the build starts with an empty one")
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save(config: Any, path: Path, callbacks: Callbacks, log: Log) -> None:
    """Add the times of a finished build to whatever is in the file by now; the file is replaced atomically.

    The lock file stays for ever. Were it removed, a build that waits on the removed file and one that makes it anew
    would both hold "the" lock, and one of them would lose its times.

    Args:
        config: The IBuilderConfig of the build.
        path: The file; its folder is made.
        callbacks: What TensorRT's logger writes to.
        log: Told one line if the file was set aside or cannot be written.
    """
    own = config.get_timing_cache()
    if own is None:
        log("TensorRT has no timing cache to keep")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            stored = _read(path)
            if stored and not _taken(
                config, stored, callbacks, lambda cache: own.combine(cache, ignore_mismatch=False)
            ):
                aside = path.with_name(f"{path.name}.other")
                path.replace(aside)
                log(f"the timing cache {path} is of another TensorRT or GPU, or damaged: it is now {aside.name}")
            _replace(path, memoryview(own.serialize()))
    except OSError as error:
        log(f"the timing cache {path} cannot be kept ({error.strerror})")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _taken(config: Any, stored: bytes, callbacks: Callbacks, take: Callable[[Any], bool]) -> bool:
    """Whether `take` took the cache in these bytes.

    TensorRT may return an empty cache for bytes of another version, and say so in its log alone.
    """
    before = callbacks.error_count
    try:
        cache = config.create_timing_cache(stored)
        if cache is None or callbacks.error_count > before:
            return False
        return bool(take(cache))
    except Exception as error:  # whatever the bindings raise for bytes that they do not know
        callbacks.say("WARNING", f"timing cache: {error}")
        return False


def _replace(path: Path, content: memoryview) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
