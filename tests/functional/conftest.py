"""A real tritonserver on a tiny engine directory, shared by all functional tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvlm_trt.client import NvlmClient
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine
from nvlm_trt.recipe import BuildRecipe

from ..http_json import HttpAnswer, post_json
from ..tiny_engine import tiny_recipe

FREE_PORTS = Ports(http=0, grpc=0, metrics=0)


@pytest.fixture(scope="session")
def recipe() -> BuildRecipe:
    """What the engine was built by."""
    return tiny_recipe()


@pytest.fixture(scope="session")
def engine_dir(tiny_engine: Path) -> Path:
    """What a build leaves."""
    return tiny_engine


@pytest.fixture(scope="session")
def server(engine_dir: Path) -> Iterator[TritonServer]:
    """The server of most tests. Tests that hurt a server start one of their own."""
    with TritonServer(engine_dir, ports=FREE_PORTS) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[NvlmClient]:
    """A client of the shared server."""
    with NvlmClient(server.grpc_url, idle_timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def local(engine_dir: Path) -> Iterator[LocalEngine]:
    """The same engines without a server: what the server's answers must equal."""
    with LocalEngine(engine_dir) as engine:
        yield engine


@pytest.fixture
def post(server: TritonServer) -> Callable[[str, object], HttpAnswer]:
    """Post a JSON body (or raw bytes) to a path below /v2 of the shared server."""
    return lambda path, body: post_json(server.http_url, path, body)
