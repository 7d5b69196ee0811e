"""How many of a task's questions a subject answers right, through nvlm_trt/eval."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nvlm_trt.bench.record import AccuracyRecord
from nvlm_trt.bench.subjects import EngineSubject, ReferenceSubject, ServerSubject, Subject
from nvlm_trt.errors import UserError
from nvlm_trt.eval.answer import Answerer, EngineAnswerer, ServerAnswerer
from nvlm_trt.eval.run import run_eval
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.recipe import load_recipe

CONCURRENCY: Final = 8
"""Questions asked at a time of whoever can answer several."""


def measure_accuracy(subject: Subject, task: Path, limit: int | None) -> AccuracyRecord:
    """Put a task to a subject.

    Args:
        subject: Who; over HTTP nothing is asked, the same server has gRPC.
        task: The JSONL file.
        limit: Questions at most, from the first one on; None for all.

    Raises:
        UserError: the task cannot be read.
        FaultError: the subject failed.
    """
    samples = read_tasks(task)[:limit]
    with ExitStack() as stack:
        answerer = _answerer(subject, stack)
        at_a_time = 1 if subject.kind == "reference" else CONCURRENCY
        records = run_eval(samples, answerer, concurrency=at_a_time)
    return AccuracyRecord(
        scores=tuple(record.score for record in records), failed=sum(record.error is not None for record in records)
    )


def _answerer(subject: Subject, stack: ExitStack) -> Answerer:
    match subject:
        case ReferenceSubject():
            from nvlm_trt.bench.ask.reference import DTYPES
            from nvlm_trt.eval.reference import ReferenceAnswerer

            recipe = load_recipe(subject.engine / "recipe.yaml")
            return ReferenceAnswerer(subject.checkpoint, DTYPES[subject.dtype], recipe=recipe)
        case EngineSubject(transport="local"):
            from nvlm_trt.local import LocalEngine

            return EngineAnswerer(stack.enter_context(LocalEngine(subject.engine)))
        case EngineSubject(transport="grpc"):
            return _server(_started(subject.engine, stack), stack)
        case ServerSubject(transport="grpc"):
            return _server(subject.url, stack)
        case _:
            raise UserError("accuracy is measured over gRPC", seen=subject.name)


def _started(engine: Path, stack: ExitStack) -> str:
    """Start the server of an engine directory; ``host:port`` of its gRPC."""
    from nvlm_trt.serving.host.ports import Ports
    from nvlm_trt.serving.host.server import TritonServer

    return stack.enter_context(TritonServer(engine, ports=Ports(0, 0, 0))).grpc_url


def _server(url: str, stack: ExitStack) -> Answerer:
    from nvlm_trt.client import NvlmClient

    return ServerAnswerer(stack.enter_context(NvlmClient(url)))
