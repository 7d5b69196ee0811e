"""Run a worker and read what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from nvlm_trt.bench.peers.tool import ToolName
from nvlm_trt.bench.record import AccuracyRecord, Device, Rate, RoundRecord
from nvlm_trt.bench.scenarios import Bounds
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.bench.worker import RATES, TOLD, AccuracyJob, CeilingsJob, Job, RoundJob
from nvlm_trt.bench.workload import Workload
from nvlm_trt.errors import FaultError

GRACE_S: Final = 30.0
"""Seconds that an interrupted worker has to stop its server."""

TAIL: Final = 500

WORKER: Final = ("-m", "nvlm_trt.bench.worker")
"""Arguments of Python."""


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """What accuracy is measured on, and where answers are kept.

    Attributes:
        questions: The JSONL file.
        limit: Questions of it at most, from the first one on; None for all.
        answers: A folder, in which each subject's records get one of its own.
    """

    questions: Path
    limit: int | None
    answers: Path

    def answers_of(self, subject: Subject) -> Path:
        """The folder of a subject's records."""
        return self.answers / re.sub(r"[^\w.-]+", "-", subject.name).strip("-")


class Workers:
    """Measures in processes of their own.

    Args:
        workload: What is asked.
        bounds: What can be asked of each subject.
        timeout: Seconds after which a round is given up; the task takes as long as it takes.
        task: What accuracy is measured on; None where it is not.
        say: Told in a line what a worker does now.
    """

    def __init__(
        self,
        workload: Workload,
        bounds: Callable[[Subject], Bounds],
        timeout: float,
        task: TaskFiles | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._workload, self._bounds, self._timeout = workload, bounds, timeout
        self._task, self._say = task, say

    def round(self, subject: Subject, number: int, tools: tuple[ToolName, ...] = ()) -> RoundRecord:
        """Measure one round of one subject.

        Raises:
            FaultError: the worker failed; with its reason.
        """
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-bench-") as folder:
            result = Path(folder) / "record.json"
            job = RoundJob(
                subject=subject,
                workload=self._workload,
                number=number,
                bounds=self._bounds(subject),
                tools=tools,
                result=result,
            )
            return RoundRecord.model_validate_json(self._run(job, self._timeout))

    def ceilings(self, device: Device) -> tuple[Rate, ...]:
        """Measure what the machine can do.

        Raises:
            FaultError: the worker failed; with its reason.
        """
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-bench-") as folder:
            job = CeilingsJob(device=device, result=Path(folder) / "rates.json")
            return RATES.validate_json(self._run(job, self._timeout))

    def accuracy(self, subject: Subject) -> AccuracyRecord:
        """Have a subject answer the task.

        Raises:
            FaultError: the worker failed; with its reason.
        """
        assert self._task is not None
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-bench-") as folder:
            result = Path(folder) / "scores.json"
            job = AccuracyJob(
                subject=subject,
                task=self._task.questions,
                limit=self._task.limit,
                output=self._task.answers_of(subject),
                result=result,
            )
            return AccuracyRecord.model_validate_json(self._run(job, None))

    def _run(self, job: Job, timeout: float | None) -> bytes:
        with tempfile.TemporaryFile() as said:
            worker = subprocess.Popen(
                [sys.executable, *WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker in order
            )
            listener = threading.Thread(target=self._listen, args=[worker.stdout], daemon=True)
            listener.start()
            try:
                self._tell(worker, job)
                worker.wait(timeout)
            except subprocess.TimeoutExpired:
                raise FaultError(
                    "the round took too long", seen=f"{timeout:g} s", fix="give a longer --round-timeout"
                ) from None
            finally:
                _end(worker)
                listener.join()
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
        if worker.returncode != 0 or not job.result.is_file():
            raise FaultError(_reason(worker.returncode, words))
        return job.result.read_bytes()

    def _tell(self, worker: subprocess.Popen[bytes], job: Job) -> None:
        """Hand a worker its job."""
        assert worker.stdin is not None
        with suppress(BrokenPipeError), worker.stdin:  # of one that ended at once, the exit code tells
            worker.stdin.write(job.model_dump_json().encode())

    def _listen(self, lines: IO[bytes]) -> None:
        """Pass on what a worker says, until it ends."""
        with lines:
            for line in lines:
                self._say(line.decode(errors="replace").rstrip())


def _reason(code: int, words: str) -> str:
    """Why a worker failed: its own sentence, the signal that killed it, or its last words."""
    lines = words.splitlines() or ["it said nothing"]
    if code == TOLD:
        return lines[-1]
    if code < 0:
        return f"the worker was killed by {signal.Signals(-code).name}: {lines[-1][-TAIL:]}"
    return f"the worker ended with code {code}: {lines[-1][-TAIL:]}"


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker that runs, first as Ctrl-C does, so that it stops its server; then what is left of its session."""
    if worker.poll() is None:
        worker.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(GRACE_S)
    with suppress(ProcessLookupError):  # a tool of others may leave processes behind, of a worker that has ended too
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
