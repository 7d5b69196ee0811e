"""Closed-loop load: a fixed number of callers, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from nvlm_trt.bench.record import RequestRecord, WaveRecord
from nvlm_trt.bench.workload import Question


class Asker(Protocol):
    """Somebody who answers and notes the times. May be asked from several threads."""

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""


def run_wave(asker: Asker, questions: Sequence[Question], concurrency: int) -> WaveRecord:
    """Ask all questions, `concurrency` at a time.

    Raises:
        NvlmTrtError: whatever the first request that failed raised; the callers stop after their requests under way.
    """
    waiting = iter(questions)
    lock = threading.Lock()
    done: list[RequestRecord] = []
    stopped = threading.Event()
    start = threading.Barrier(concurrency + 1)

    def call() -> None:
        start.wait()
        while not stopped.is_set():
            with lock:
                question = next(waiting, None)
            if question is None:
                return
            record = asker.ask(question)
            with lock:
                done.append(record)

    with ThreadPoolExecutor(concurrency, thread_name_prefix="bench") as callers:
        calls = [callers.submit(call) for _ in range(concurrency)]
        start.wait()
        started = time.perf_counter()
        try:
            for each in as_completed(calls):
                each.result()
            wall = time.perf_counter() - started
        finally:
            stopped.set()  # after a failure, or where this thread is interrupted, nobody asks again
    return WaveRecord(concurrency=concurrency, wall_s=wall, requests=tuple(done))
