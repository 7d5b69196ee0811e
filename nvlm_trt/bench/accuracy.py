"""How many of a task's questions a subject answers right, through nvlm_trt/eval."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

from nvlm_trt import __version__
from nvlm_trt.bench.record import AccuracyRecord
from nvlm_trt.bench.subjects import EngineSubject, OpenedEngine, ReferenceSubject, ServerSubject, Subject
from nvlm_trt.engine_files import RECIPE, engine_recipe
from nvlm_trt.errors import UserError
from nvlm_trt.eval.answer import Answerer, EngineAnswerer, ServerAnswerer
from nvlm_trt.eval.run import run_eval
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.pipeline.digest import DigestCache, combined, digest_json
from nvlm_trt.pipeline.fingerprint import identify
from nvlm_trt.subjects import computed_with

CONCURRENCY: Final = 8
"""Questions asked at a time of whoever can answer several."""

ANSWERING: Final = ("nvlm_trt.eval.answer", "nvlm_trt.eval.reference", "nvlm_trt.serving.models.nvlm")
"""The modules that answer, whoever is asked."""


def measure_accuracy(subject: Subject, task: Path, limit: int | None, output: Path) -> AccuracyRecord:
    """Put a task to a subject. Answers are recorded as they come; what the same one answered earlier is taken over.

    Args:
        subject: Who; over HTTP nothing is asked, the same server has gRPC.
        task: The JSONL file.
        limit: Questions at most, from the first one on; None for all.
        output: Folder of the records.

    Raises:
        UserError: the task cannot be read, or the records cannot be written.
        FaultError: the subject failed.
    """
    samples = read_tasks(task)[:limit]
    with ExitStack() as stack:
        answerer = _answerer(subject, stack)
        at_a_time = 1 if subject.kind == "reference" else CONCURRENCY
        records = run_eval(samples, answerer, identity=_identity(subject), output=output, concurrency=at_a_time)
    return AccuracyRecord(
        scores=tuple(record.score for record in records), failed=sum(record.error is not None for record in records)
    )


def _identity(subject: Subject) -> str:
    """Digest of who answers. Of a server that ran already nobody knows what is behind it: it is another one each time.

    Raises:
        EngineError: the engine directory is not complete.
    """
    who = subject.model_dump(mode="json", exclude={"name", "engine", "checkpoint"})
    if isinstance(subject, ServerSubject):
        return digest_json({**who, "run": uuid4().hex})
    cache, parts = DigestCache(subject.engine), [RECIPE]
    if isinstance(subject, ReferenceSubject):
        who["checkpoint"] = identify(subject.checkpoint, cache).fingerprint
    else:
        parts += OpenedEngine(subject.engine).parts
    engine = combined(cache.digest_outputs(subject.engine, parts))
    return digest_json({**who, "engine": engine, "version": __version__, **computed_with(*ANSWERING)})


def _answerer(subject: Subject, stack: ExitStack) -> Answerer:
    match subject:
        case ReferenceSubject():
            from nvlm_trt.bench.ask.placed import open_reference
            from nvlm_trt.eval.reference import ReferenceAnswerer

            recipe = engine_recipe(subject.engine)
            vision, decoder = open_reference(subject.checkpoint, subject.dtype, subject.device)
            return ReferenceAnswerer(subject.checkpoint, recipe=recipe, vision=vision, decoder=decoder)
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
    from nvlm_trt.host.ports import Ports
    from nvlm_trt.host.server import TritonServer

    return stack.enter_context(TritonServer(engine, ports=Ports(0, 0, 0))).grpc_url


def _server(url: str, stack: ExitStack) -> Answerer:
    from nvlm_trt.client import NvlmClient

    return ServerAnswerer(stack.enter_context(NvlmClient(url)))
