"""One round of one subject, in a process of its own: ``python -m nvlm_trt.bench.worker`` reads a job, writes a record.

A process of its own keeps memory figures apart, and no engine computes beside another one's idle threads. The job is
JSON on stdin; what is measured goes to the file that the job names. Lines on stdout say what is done now: what
libraries write there goes nowhere.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from nvlm_trt.bench.accuracy import measure_accuracy
from nvlm_trt.bench.ceilings import measure_ceilings
from nvlm_trt.bench.gpu_memory import GpuMemoryWatch
from nvlm_trt.bench.load import run_wave
from nvlm_trt.bench.loading import load
from nvlm_trt.bench.peers import RUN, PeerTask, ToolName
from nvlm_trt.bench.quiet import ForeignLoad
from nvlm_trt.bench.record import Device, Frozen, PeerRecord, Rate, RoundRecord
from nvlm_trt.bench.scenarios import Bounds, Scene, play
from nvlm_trt.bench.subjects import PeerSubject, ServerSubject, Subject
from nvlm_trt.bench.workload import Workload
from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.errors import NvlmTrtError

TOLD: Final = 3
"""Exit code of a worker whose last line on stderr says what went wrong."""


class RoundJob(Frozen):
    """Measure one round of one subject.

    Attributes:
        kind: What this is.
        subject: Who.
        workload: What is asked.
        number: Of the round, from 0 on; other rounds ask other questions.
        bounds: What can be asked.
        tools: Load tools of others that are run as well.
        result: The file that the record is written to.
    """

    kind: Literal["round"] = "round"
    subject: Subject
    workload: Workload
    number: int
    bounds: Bounds
    tools: tuple[ToolName, ...] = ()
    result: Path


class CeilingsJob(Frozen):
    """Measure what the machine can do.

    Attributes:
        kind: What this is.
        device: Where.
        result: The file that the rates are written to.
    """

    kind: Literal["ceilings"] = "ceilings"
    device: Device
    result: Path


class AccuracyJob(Frozen):
    """Have a subject answer a task.

    Attributes:
        kind: What this is.
        subject: Who.
        task: The JSONL file.
        limit: Questions at most, from the first one on; None for all.
        output: Folder of the answers' records.
        result: The file that the scores are written to.
    """

    kind: Literal["accuracy"] = "accuracy"
    subject: Subject
    task: Path
    limit: int | None
    output: Path
    result: Path


Job = RoundJob | CeilingsJob | AccuracyJob
JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
RATES: TypeAdapter[tuple[Rate, ...]] = TypeAdapter(tuple[Rate, ...])


def main() -> int:
    """Do the job that stdin holds."""
    job = JOB.validate_json(sys.stdin.buffer.read())
    try:
        job.result.write_bytes(_done(job, _teller()))
    except NvlmTrtError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return TOLD
    return 0


def _teller() -> Callable[[str], None]:
    """Writes lines to what was stdout, and lets everybody else's go nowhere."""
    kept = os.dup(sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

    def tell(line: str) -> None:
        os.write(kept, f"{line}\n".encode())

    return tell


def _done(job: Job, say: Callable[[str], None]) -> bytes:
    match job:
        case CeilingsJob():
            return RATES.dump_json(measure_ceilings(job.device))
        case AccuracyJob():
            return measure_accuracy(job.subject, job.task, job.limit, job.output).model_dump_json().encode()
        case RoundJob():
            return measure_round(job, say).model_dump_json().encode()


def measure_round(job: RoundJob, say: Callable[[str], None] = lambda _: None) -> RoundRecord:
    """Load, warm up, ask under every concurrency, go through the scenarios, look at the memory, run tools of others.

    Args:
        job: What is measured.
        say: Told in a word what is measured now.
    """
    workload, left_out = _readable(job)
    start = job.number * workload.per_round()
    tile_size = job.bounds.tile_size
    questions = [workload.question(start + index, tile_size) for index in range(workload.per_round())]
    with ExitStack() as stack:
        gpu = stack.enter_context(GpuMemoryWatch()) if _on_gpu(job.subject) else None
        loaded = load(job.subject, workload.max_tokens, stack)
        warmup = tuple(loaded.asker.ask(question) for question in questions[: workload.warmup])
        waves, begin = [], workload.warmup
        scene = Scene(loaded.asker, job.bounds, job.number, workload.repeats)
        with ForeignLoad() as others:
            for level in workload.levels:
                say(f"{level} at a time")
                end = begin + workload.count(level)
                waves.append(run_wave(loaded.asker, questions[begin:end], level))
                begin = end
            cases = play(workload.scenarios, scene, say)
        peak = None if loaded.load_s is None else loaded.peak_bytes()
        gpu_peak = None if gpu is None else gpu.peak_bytes()
        peers = _peers(job, loaded.url) if loaded.url else ()
    return RoundRecord(
        load_s=loaded.load_s,
        before_bytes=loaded.before_bytes,
        peak_bytes=peak,
        gpu_peak_bytes=gpu_peak,
        warmup=warmup,
        waves=tuple(waves),
        cases=cases,
        left_out=(*left_out, *scene.left_out),
        settings=loaded.settings,
        foreign_cores=None if loaded.load_s is None else others.cores,
        peers=peers,
    )


def _readable(job: RoundJob) -> tuple[Workload, tuple[str, ...]]:
    """What a subject is asked, and why not all of it: of whoever reads no images, no load with images."""
    workload = job.workload
    if not isinstance(job.subject, PeerSubject) or job.subject.reads_images or workload.text_only:
        return workload, ()
    rest = tuple(name for name in workload.scenarios if name != "load")
    told = ("load: it reads no images",) if workload.levels else ()
    return workload.model_copy(update={"text_only": True, "scenarios": rest}), told


def _on_gpu(subject: Subject) -> bool:
    """Whether it is loaded into a GPU now; a server that runs already has been."""
    return not isinstance(subject, ServerSubject) and subject.device == "cuda"


def _peers(job: RoundJob, url: str) -> tuple[PeerRecord, ...]:
    """Every tool at every concurrency, right after our own waves, with requests of negative numbers: nobody else's."""
    records = []
    tokenizer = None if isinstance(job.subject, ServerSubject) else job.subject.engine / TOKENIZER
    asked = sum(map(job.workload.count, job.workload.levels)) * len(job.tools)
    numbers = itertools.count(-1 - job.number * asked, -1)
    for name in job.tools:
        for level in job.workload.levels:
            few = itertools.islice(numbers, job.workload.count(level))
            questions = [job.workload.question(number, job.bounds.tile_size) for number in few]
            with tempfile.TemporaryDirectory(prefix="nvlm-trt-bench-") as scratch:
                task = PeerTask(
                    url=url,
                    questions=questions,
                    concurrency=level,
                    max_tokens=job.workload.max_tokens,
                    tokenizer=tokenizer,
                    scratch=Path(scratch),
                )
                try:
                    records.append(PeerRecord(tool=name, concurrency=level, figures=RUN[name](task)))
                except NvlmTrtError as error:  # our own figures stand without theirs
                    records.append(PeerRecord(tool=name, concurrency=level, error=str(error)))
    return tuple(records)


if __name__ == "__main__":
    sys.exit(main())
