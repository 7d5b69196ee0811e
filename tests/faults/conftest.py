"""What the tests of the faults share: a server, a client that behaves beside them, a place for their figures.

A test says which fault it is of by ``@pytest.mark.fault(case=7)`` and notes what it measured by `fault_record`. With
``NVLM_TRT_FAULT_REPORT=FILE`` each outcome becomes a line of JSON in that file; `scripts/chaos.sh` makes the table.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nvlm_trt.gateway import app
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Limits, Upstream
from nvlm_trt.recipe import BuildRecipe

from ..gateway.door import free_port
from ..tiny_engine import tiny_recipe
from .internet import Web
from .neighbour import Neighbour, Seen
from .served import MemoryPeak, Served

REPORT = "NVLM_TRT_FAULT_REPORT"
FIGURE = "fault figure"

LIMITS = {"max_body": 16 << 20, "max_image": 8 << 20, "queue_time": 60}
"""Of the shared server: small enough to be met with little data; a busy machine is no fault."""

LISTED = ("localhost", "127.0.0.1", "*.example.com")
"""Domains that it fetches from; listing the machine itself must not open it."""

WORDY = "a-model-of-a-long-name-" * 500
"""Another name of the model at further gateways: every event of a stream repeats it, so that streams are large."""

FaultRecord = Callable[..., None]
OpenDoor = Callable[..., "Beside"]


class Beside(NamedTuple):
    """A further gateway in front of the shared server, and its ``host:port``."""

    address: str
    gateway: Gateway


@pytest.fixture(scope="session")
def recipe() -> BuildRecipe:
    """What the engine was built by."""
    return tiny_recipe()


@pytest.fixture(scope="session")
def engine_dir(tiny_engine: Path) -> Path:
    """What a build leaves."""
    return tiny_engine


@pytest.fixture(scope="package")
def served(engine_dir: Path) -> Iterator[Served]:
    """The server of faults at the door, which must survive all of them."""
    options = [f"--limit={name}={value}" for name, value in LIMITS.items()]
    options += [f"--image-domain={domain}" for domain in LISTED]
    with Served(engine_dir, options) as running:
        pids = [process.pid for process in running.processes]
        yield running
        assert [process.pid for process in running.processes] == pids, "a process was lost, or replaced"


@pytest.fixture(scope="session")
def limits(recipe: BuildRecipe) -> Limits:
    """Of the shared server."""
    return replace(Limits.of(recipe), **LIMITS)


@pytest.fixture
def door(served: Served) -> Iterator[OpenDoor]:
    """Open a further gateway in front of the shared server, with limits of its own.

    It is in the process of the tests, so that a test can say what DNS answers and how wide the way to a client is.
    """
    with contextlib.ExitStack() as stack:

        def open_(limits: Limits, **more: Any) -> Beside:
            port = free_port()
            upstream = Upstream("127.0.0.1:1", served.grpc, served.metrics)
            front = app.Served(upstream, ("nvlm", WORDY), lambda: True)
            gateway = Gateway("127.0.0.1", port, front, GatewaySettings(limits), grace=0.2, **more)
            gateway.start()
            stack.callback(gateway.stop)
            return Beside(f"127.0.0.1:{port}", gateway)

        yield open_


@pytest.fixture(scope="session")
def internet() -> Iterator[Web]:
    """A server of images."""
    made = Web()
    yield made
    made.close()


@pytest.fixture(scope="package")
def client_beside(served: Served) -> Iterator[Neighbour]:
    """A client of the shared server that behaves; nobody is there yet."""
    made = Neighbour(served.http)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def neighbour(client_beside: Neighbour) -> Iterator[Neighbour]:
    """That client, there for as long as a test lasts."""
    with client_beside.present():
        yield client_beside


@pytest.fixture
def fault_record(request: pytest.FixtureRequest) -> FaultRecord:
    """Note what a test measured; each figure may be left out."""

    def note(
        *, time_ms: float | None = None, memory_mb: float | None = None, others: object = None, variant: str = ""
    ) -> None:
        """Note figures.

        Args:
            time_ms: Until the answer, the error, or whatever had to happen.
            memory_mb: By which the processes of the server grew, at their peak.
            others: Who else was affected, in words; "none" where nobody was.
            variant: What was done, where a test does several things.
        """
        figure = {"variant": variant, "time_ms": time_ms, "memory_mb": memory_mb, "others": others and str(others)}
        request.node.user_properties.append((FIGURE, figure))

    return note


@dataclass
class Watch:
    """What a fault costs, from the making of this to `end`."""

    memory: MemoryPeak
    neighbour: Neighbour
    began: float

    def end(self) -> tuple[float, Seen]:
        """Memory growth in megabytes, at the peaks, and what the one who behaves has seen."""
        growth = self.memory.growth()
        seen = self.neighbour.seen(self.began)
        assert not seen.faults, seen.faults
        assert seen.finished, "no stream of a client that behaves was finished"
        return growth, seen


@pytest.fixture
def watch(served: Served, neighbour: Neighbour) -> Callable[[], Watch]:
    """Begin to watch memory and the one who behaves."""
    return lambda: Watch(MemoryPeak(served.processes), neighbour, time.monotonic())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Write a line for each test that ran, or that could not."""
    report: Any = yield
    file, marker = os.environ.get(REPORT), item.get_closest_marker("fault")
    if file and marker is not None and (report.when == "call" or (report.when == "setup" and not report.passed)):
        figures = [value for name, value in item.user_properties if name == FIGURE]
        line = {"case": marker.kwargs["case"], "test": item.nodeid, "outcome": report.outcome, "figures": figures}
        with open(file, "a") as lines:
            lines.write(json.dumps(line) + "\n")
    return report  # type: ignore[return-value]
