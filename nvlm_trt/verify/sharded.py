"""Prove tensor and pipeline parallelism without a GPU: run a converted decoder rank by rank, compare its logits.

Every rank is a process that reads its own file and talks to the others over gloo on the loopback interface. The
unsharded reference reads the source checkpoint with its weights rounded to the converted dtype and computes in float32.
Without quantisation only that and the order of summation are left between them; with it, what the precision costs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import nvlm_trt
from nvlm_trt.decoder.precision import UNQUANTIZED
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.errors import FaultError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, Table
from nvlm_trt.verify import sharded_worker
from nvlm_trt.verify.fake_quant import FakeQuantized, RoundedCheckpoint
from nvlm_trt.verify.sharded_report import PromptAgreement, ShardedReport
from nvlm_trt.verify.sharded_worker import LOGITS_NAME, PROMPTS_NAME, Job

GRACE_SECONDS = 5.0
"""What the watching process gets on top of the time of its ranks, to end them and to say so."""

Prompt = tuple[Ids, Table]
"""Decoder ids (visual ids from vocab_size up) and the prompt table that they index, or None."""


def precision_distance(
    checkpoint: Checkpoint, trtllm_dir: Path, *, prompts: Sequence[Prompt], timeout: float = 600.0
) -> ShardedReport:
    """Measure how far a converted decoder, run rank by rank, is from the reference with weights in the model's dtype.

    Of a quantised one the report also holds the distance of torch with the same precision (see fake_quant).

    Args:
        checkpoint: The source of the conversion.
        trtllm_dir: The TensorRT-LLM checkpoint.
        prompts: At least one; logits of all of their positions are compared.
        timeout: Seconds after which the ranks are ended.

    Raises:
        CheckpointError: the converted checkpoint's config.json cannot be read.
        FaultError: a rank failed, or the time was up; no process is left behind.
    """
    if not prompts:
        raise ValueError("at least one prompt is needed")
    config = TrtllmConfig.read(trtllm_dir)
    sharded = run_sharded(trtllm_dir, prompts, timeout=timeout)
    expected = _all_logits(DecoderReference(RoundedCheckpoint(checkpoint, config.dtype.torch)), prompts)
    yardsticks: list[torch.Tensor] = []
    if config.quantization != UNQUANTIZED:
        yardsticks = _all_logits(FakeQuantized(checkpoint, config.precision), prompts)
    return ShardedReport(
        tp=config.tp,
        pp=config.pp,
        prompts=tuple(map(PromptAgreement.of, sharded, expected)),
        yardsticks=tuple(map(PromptAgreement.of, yardsticks, expected)),
    )


def run_sharded(trtllm_dir: Path, prompts: Sequence[Prompt], *, timeout: float) -> list[torch.Tensor]:
    """Logits of every prompt, float32 [t, vocab_size] each, from one process per rank.

    Raises:
        FaultError: a rank failed, or the time was up; no process is left behind.
    """
    tensors: dict[str, torch.Tensor] = {}
    for number, (ids, table) in enumerate(prompts):
        tensors[f"ids.{number}"] = torch.as_tensor(np.asarray(ids, dtype=np.int64))
        if table is not None:
            tensors[f"table.{number}"] = torch.as_tensor(table).float().clone()  # prompts may share one
    with tempfile.TemporaryDirectory(prefix="nvlm-trt-sharded-") as name:
        directory = Path(name)
        save_file(tensors, directory / PROMPTS_NAME)
        Job(str(trtllm_dir.resolve()), len(prompts), timeout).write(directory)
        _run_ranks(directory, timeout)
        logits = load_file(directory / LOGITS_NAME)
        return [logits[f"logits.{number}"].clone() for number in range(len(prompts))]


def _all_logits(reference: DecoderReference, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    return [reference.logits(ids, table) for ids, table in prompts]


def _run_ranks(directory: Path, timeout: float) -> None:
    with (directory / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", sharded_worker.__name__, str(directory)],
            stdin=subprocess.PIPE,  # never written to: the ranks end when it closes
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=_environment(),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    if code != 0:
        raise FaultError("the sharded run failed", seen=_explain(directory, timeout))


def _environment() -> dict[str, str]:
    package_root = str(Path(nvlm_trt.__file__).parents[1])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and every rank that it forked: they are a session, and so a group, of their own.

    A process that ended by itself has ended its ranks before.
    """
    if process.returncode is None or process.returncode < 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def _explain(directory: Path, timeout: float) -> str:
    """What the first rank to fail said, else the last line of stderr, else that the time was up."""
    faults = sorted(directory.glob("fault*.txt"), key=lambda path: path.stat().st_mtime_ns)
    if faults:
        return faults[0].read_text(encoding="utf-8")
    lines = (directory / "stderr.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"no answer within {timeout:g} s, or a rank was killed"
