"""Make a subject ready to be asked, and note how long that takes. Libraries are imported before the clock starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvlm_trt.bench.load import Asker
from nvlm_trt.bench.memory import forget_peak, resident_bytes
from nvlm_trt.bench.subjects import Subject
from nvlm_trt.recipe import load_recipe


class ClosingAsker(Asker, Protocol):
    """Whoever is asked, until it is closed."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A subject that is ready.

    Attributes:
        asker: Whom to ask.
        load_s: Seconds until it was ready; None for a server that ran already.
        before_bytes: Resident memory of this process before.
        url: ``host:port`` of the server, of the subject's transport; None without one.
    """

    asker: ClosingAsker
    load_s: float | None
    before_bytes: int | None
    url: str | None = None


def load(subject: Subject, max_tokens: int, stack: ExitStack) -> Loaded:
    """Load a subject; leaving `stack` ends it.

    Raises:
        EngineError: the engines cannot be loaded here.
        ServerError: its server did not start.
    """
    if subject.transport != "local":
        return _served(subject, max_tokens, stack)
    make = _reference(subject, max_tokens) if subject.kind == "reference" else _engine(subject, max_tokens)
    forget_peak()  # of what made the requests
    before, started = resident_bytes(), time.perf_counter()
    asker = make()
    seconds = time.perf_counter() - started
    stack.callback(asker.close)
    return Loaded(asker, seconds, before)


def _engine(subject: Subject, max_tokens: int) -> Callable[[], ClosingAsker]:
    from nvlm_trt.bench.ask.local import LocalAsker

    directory = _given(subject.engine)
    return lambda: LocalAsker(directory, max_tokens)


def _reference(subject: Subject, max_tokens: int) -> Callable[[], ClosingAsker]:
    from nvlm_trt.bench.ask.reference import ReferenceAsker

    recipe, checkpoint = load_recipe(_given(subject.engine) / "recipe.yaml"), _given(subject.checkpoint)
    assert subject.dtype is not None
    dtype = subject.dtype
    return lambda: ReferenceAsker(checkpoint, dtype, recipe, max_tokens)


def _served(subject: Subject, max_tokens: int, stack: ExitStack) -> Loaded:
    from nvlm_trt.bench.ask.served import GrpcAsker, HttpAsker
    from nvlm_trt.serving.host.ports import Ports
    from nvlm_trt.serving.host.server import TritonServer

    kind = GrpcAsker if subject.transport == "grpc" else HttpAsker
    if subject.url is not None:
        asker = kind(subject.url, max_tokens)
        stack.callback(asker.close)
        return Loaded(asker, None, None, subject.url)
    forget_peak()
    before, started = resident_bytes(), time.perf_counter()
    server = stack.enter_context(TritonServer(_given(subject.engine), ports=Ports(0, 0, 0)))
    seconds = time.perf_counter() - started
    url = server.grpc_url if subject.transport == "grpc" else server.http_url
    asker = kind(url, max_tokens)
    stack.callback(asker.close)
    return Loaded(asker, seconds, before, url)


def _given(path: Path | None) -> Path:
    assert path is not None
    return path
