"""Stage decoder-compile on the gpu target: trtllm-build is run, watched, and its engines are checked.

It needs TensorRT-LLM, and a GPU of the model that the engines are for.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt import guarded
from nvlm_trt.decoder.trtllm_build_command import PROGRAM, EngineSettings, build_command
from nvlm_trt.decoder.trtllm_build_failure import build_failure
from nvlm_trt.decoder.trtllm_build_watch import BuildWatch
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_engine import check_engine, engine_file
from nvlm_trt.environment.seen import installed
from nvlm_trt.environment.versions import PINNED_IMAGE, PINNED_TENSORRT_LLM, TENSORRT_LLM, USE_IMAGE
from nvlm_trt.errors import CheckpointError, EngineError
from nvlm_trt.progress import Log, Progress

IMAGE: Final = PINNED_IMAGE
"""Where trtllm-build and the TensorRT that serves its engines are."""

LOG_NAME: Final = "build.log"
TIMING_NAME: Final = "timing.cache"

LOOK_SECONDS: Final = 0.5
"""How often the engines and the log of a running build are looked at."""


def build_decoder_tensorrt_llm(
    checkpoint_dir: Path,
    out_dir: Path,
    *,
    settings: EngineSettings,
    workers: int,
    timing_cache: Path,
    work_dir: Path,
    progress: Progress,
    log: Log,
    table_dtype: str | None = None,
) -> None:
    """Build the engines of all ranks: out_dir gets rank{r}.engine, config.json and build.log.

    trtllm-build and all that it starts have a session of their own, which is ended when this call or this process ends,
    however that comes. Its log is work_dir/build.log while it runs, and stays there if it fails.

    Args:
        checkpoint_dir: The TensorRT-LLM checkpoint; it says how many ranks there are.
        out_dir: Directory to write into; made if it is missing.
        settings: Of the engine.
        workers: Ranks that are built at a time.
        timing_cache: Times of kernels from earlier builds for this GPU model, where there are some; replaced by what
            this build knows once it has succeeded.
        work_dir: Directory for the log and this build's times of kernels; made if it is missing.
        progress: Called with (bytes of weights that are built, bytes of all); a rank counts by its phases.
        log: Told a line of what is run, one for each engine, and one every few minutes of silence.
        table_dtype: Of the rows that the vision engine makes (`VisionDescription.output.dtype`), which become the
            prompt table; None where there is no vision engine to compare with.

    Raises:
        EngineError: there is no trtllm-build on this machine, or that of a TensorRT-LLM that is not supported, or the
            engine would refuse every prompt table.
        CheckpointError: the checkpoint has no config.json or lacks a rank.
        BuildError: trtllm-build failed, with the end of its log and what to do, or built something else.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise EngineError(f"there is no {PROGRAM} on this machine", fix=f"run it inside {IMAGE}")
    config = TrtllmConfig.read(checkpoint_dir)
    _check_version(installed("tensorrt_llm"))
    _check_table(table_dtype, config)
    ranks = _rank_bytes(checkpoint_dir, config.world_size)
    for directory in (out_dir, work_dir):
        directory.mkdir(parents=True, exist_ok=True)
    measured = _seeded(timing_cache, work_dir / TIMING_NAME)
    # One after the other, ranks learn from rank 0, which alone writes what it has measured; a file that isn't there yet
    # is no fault to trtllm-build. Side by side they would read it half written.
    known = measured if workers == 1 else timing_cache if timing_cache.is_file() else None
    words = build_command(
        settings, checkpoint_dir, out_dir, workers=workers, timing_cache_in=known, timing_cache_out=measured
    )
    log_path = work_dir / LOG_NAME
    log(f"{shlex.join((PROGRAM, *words))}; its log: {log_path}")
    watch = BuildWatch(out_dir, log_path, ranks, progress, log)
    code = _run((program, *words), log_path, watch)
    if code != 0:
        raise build_failure(code, log_path, workers=workers, timing_cache=timing_cache)
    check_engine(out_dir, settings, config)
    shutil.copyfile(log_path, out_dir / LOG_NAME)
    _publish(measured, timing_cache)
    progress(sum(ranks.values()), sum(ranks.values()))


def _check_version(version: str | None) -> None:
    """Refuse a release whose flags or engines are others; where none is installed, the program is asked.

    Before 1.2 trtllm-build put its own --gpus_per_node in place of the checkpoint's (NVIDIA/TensorRT-LLM, pull request
    8329).
    """
    if version is None:
        return
    if version not in TENSORRT_LLM:
        raise EngineError(
            "this TensorRT-LLM is not supported",
            seen=version,
            expected=f"{TENSORRT_LLM.words} (pinned: {PINNED_TENSORRT_LLM})",
            fix=USE_IMAGE,
        )


def _check_table(dtype: str | None, config: TrtllmConfig) -> None:
    """Refuse a decoder of another dtype than the prompt table's before hours are spent on it.

    The runtime takes a table of the engine's own dtype alone: it ends any other request with an error
    (cpp/tensorrt_llm/batch_manager/promptTuningBuffers.cpp).
    """
    if dtype is not None and dtype != config.dtype.name:
        raise EngineError(
            "the vision engine's rows have another dtype than the decoder, which takes prompt tables of its own alone",
            seen=f"vision {dtype}, decoder {config.dtype.name}",
            expected=f"{config.dtype.name} from both",
            fix="build vision-export and decoder-convert with the same recipe",
        )


def _run(command: tuple[str, ...], log_path: Path, watch: BuildWatch) -> int:
    """Run the command with its output in the log; its exit code, negative for a signal."""
    start = time.monotonic()
    with log_path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", guarded.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
        try:
            code = None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(LOOK_SECONDS)
                watch.look(time.monotonic() - start, lambda: _memory_below(process.pid))
            return code
        finally:
            process.kill()  # the guard ends the workers; nothing happens to what has ended
            process.wait()


def _environment() -> dict[str, str]:
    """This process's own, without the variable that would overrule the number of optimisation profiles."""
    kept = {name: value for name, value in os.environ.items() if name != "BUILDER_FORCE_NUM_PROFILES"}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _memory_below(pid: int) -> int:
    """Resident bytes of a process and all that it has started; 0 once it has ended."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total


def _rank_bytes(checkpoint_dir: Path, world_size: int) -> dict[str, int]:
    """Bytes of the weights of each rank, by the name of the engine that is made of them."""
    sizes = {}
    for rank in range(world_size):
        path = (checkpoint_dir / engine_file(rank)).with_suffix(".safetensors")
        if not path.is_file():
            raise CheckpointError("the checkpoint lacks a rank", seen=path, fix="run the decoder-convert stage again")
        sizes[engine_file(rank)] = path.stat().st_size
    return sizes


def _seeded(timing_cache: Path, copy: Path) -> Path:
    """A copy of the cache for one build alone; without one, nothing left over from an earlier build."""
    copy.unlink(missing_ok=True)
    if timing_cache.is_file():
        shutil.copyfile(timing_cache, copy)
    return copy


def _publish(measured: Path, timing_cache: Path) -> None:
    """Replace the cache at once: builds beside this one may read it."""
    if not measured.is_file():
        return
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    beside = timing_cache.with_name(f".{timing_cache.name}.{os.getpid()}.tmp")
    shutil.copyfile(measured, beside)
    beside.replace(timing_cache)
