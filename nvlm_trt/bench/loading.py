"""Make a subject ready to be asked, and note how long that takes. Libraries are imported before the clock starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nvlm_trt.bench.load import Asker
from nvlm_trt.bench.memory import forget_peak, peak_bytes, resident_bytes
from nvlm_trt.bench.subjects import EngineSubject, PeerSubject, ReferenceSubject, ServerSubject, Subject, Transport
from nvlm_trt.engine_files import engine_recipe


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
        before_bytes: Resident memory before, of the process that loads.
        url: ``host:port`` of the server, of the subject's transport; None without one.
        peak_bytes: Tells the largest resident memory of whoever is asked.
        settings: How it was set up, in its own words; None where the recipe tells.
    """

    asker: ClosingAsker
    load_s: float | None
    before_bytes: int | None
    url: str | None = None
    peak_bytes: Callable[[], int] = peak_bytes
    settings: str | None = None


def load(subject: Subject, max_tokens: int, stack: ExitStack) -> Loaded:
    """Load a subject; leaving `stack` ends it.

    Raises:
        EngineError: the engines cannot be loaded here.
        ServerError: its server, or its process, did not start.
    """
    match subject:
        case ReferenceSubject():
            return _loaded(_reference(subject, max_tokens), stack)
        case EngineSubject(transport="local"):
            return _loaded(_engine(subject, max_tokens), stack)
        case EngineSubject(transport=transport):
            return _served(subject.engine, transport, max_tokens, stack)
        case ServerSubject():
            asker = _client(subject.transport, subject.url, max_tokens, stack)
            return Loaded(asker, None, None, subject.url)
        case PeerSubject():
            return _peer(subject, max_tokens, stack)


def _loaded(make: Callable[[], ClosingAsker], stack: ExitStack) -> Loaded:
    """Make an asker of this process and take the time."""
    forget_peak()  # of what made the requests
    before, started = resident_bytes(), time.perf_counter()
    asker = make()
    seconds = time.perf_counter() - started
    stack.callback(asker.close)
    return Loaded(asker, seconds, before)


def _engine(subject: EngineSubject, max_tokens: int) -> Callable[[], ClosingAsker]:
    from nvlm_trt.bench.ask.local import LocalAsker

    return lambda: LocalAsker(subject.engine, max_tokens)


def _reference(subject: ReferenceSubject, max_tokens: int) -> Callable[[], ClosingAsker]:
    from nvlm_trt.bench.ask.reference import ReferenceAsker

    recipe = engine_recipe(subject.engine)
    return lambda: ReferenceAsker(subject.checkpoint, subject.dtype, subject.device, recipe, max_tokens)


def _peer(subject: PeerSubject, max_tokens: int, stack: ExitStack) -> Loaded:
    """Start a peer's process, which notes itself how long it loads and how much it holds."""
    from nvlm_trt.bench.ask.peer import PeerAsker

    asker = PeerAsker(subject, max_tokens)
    stack.callback(asker.close)
    return Loaded(asker, asker.load_s, asker.before_bytes, None, asker.peak_bytes, asker.settings)


def _served(engine: Path, transport: Transport, max_tokens: int, stack: ExitStack) -> Loaded:
    """Start a server on free ports and take the time until it is ready."""
    from nvlm_trt.gateway.settings import GatewaySettings, Limits
    from nvlm_trt.host.ports import Ports
    from nvlm_trt.host.server import TritonServer

    limits = Limits.of(engine_recipe(engine))
    settings = GatewaySettings(replace(limits, queue_time=limits.deadline))  # a load is measured, however long it waits
    forget_peak()
    before, started = resident_bytes(), time.perf_counter()
    server = stack.enter_context(TritonServer(engine, ports=Ports(0, 0, 0), gateway=settings))
    seconds = time.perf_counter() - started
    url = server.grpc_url if transport == "grpc" else server.http_url
    return Loaded(_client(transport, url, max_tokens, stack), seconds, before, url)


def _client(transport: Transport, url: str, max_tokens: int, stack: ExitStack) -> ClosingAsker:
    from nvlm_trt.bench.ask.served import GrpcAsker, HttpAsker

    asker = GrpcAsker(url, max_tokens) if transport == "grpc" else HttpAsker(url, max_tokens)
    stack.callback(asker.close)
    return asker
