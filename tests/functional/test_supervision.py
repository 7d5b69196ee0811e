"""A server that fails is replaced, and one that is stopped leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.errors import BusyError, EngineError, NvlmTrtError
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer

FREE = Ports(0, 0, 0)
LONG = Options(max_tokens=400, min_tokens=400)
SHORT = Options(max_tokens=4)


def stub_of(server: TritonServer, model: str) -> psutil.Process:
    """The process of a model."""
    for child in psutil.Process(server.process.pid).children():
        if f"/{model}/" in " ".join(child.cmdline()):
            return child
    raise AssertionError(f"no process of {model}")


def regions(supervisor: int) -> set[str]:
    """Shared memory of the servers that a process supervises."""
    return {file.name for file in Path("/dev/shm").glob(f"nvlm_trt_{supervisor}_*")}


@pytest.fixture(scope="module")
def fragile(engine_dir: Path) -> Iterator[TritonServer]:
    """A server that may be hurt, with little patience."""
    with TritonServer(engine_dir, ports=FREE, hang_timeout=5.0) as running:
        yield running


def wait_replaced(server: TritonServer, restarts: int) -> None:
    deadline = time.monotonic() + 60
    while server.restarts <= restarts and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.wait_ready(60)


@pytest.mark.parametrize("model", ["tensorrt_llm", "preprocessing"])
def test_a_model_process_that_dies_is_replaced(fragile, model):
    before = fragile.restarts
    with NvlmClient(fragile.grpc_url, idle_timeout=20) as client:
        expected = client.generate("Hello", options=SHORT)
        stream = client.stream("Tell me", options=LONG)
        next(iter(stream))
        stub_of(fragile, model).kill()
        killed = time.monotonic()
        try:  # the stream ends: with an error, or because it was done before the server was
            stream.answer  # noqa: B018
        except NvlmTrtError:
            assert time.monotonic() - killed < 5
        wait_replaced(fragile, before)
        assert client.generate("Hello", options=SHORT) == expected


def test_a_model_process_that_hangs_is_replaced(fragile):
    before = fragile.restarts
    stub_of(fragile, "tensorrt_llm").send_signal(signal.SIGSTOP)
    with NvlmClient(fragile.grpc_url, idle_timeout=20) as client:
        wait_replaced(fragile, before)
        assert client.generate("Hello", options=SHORT).num_output_tokens == 4


def test_a_server_whose_directory_was_removed_is_replaced_in_another_one(fragile):
    before, removed = fragile.restarts, fragile.log.parents[1]
    shutil.rmtree(removed)
    wait_replaced(fragile, before)
    assert fragile.restarts_by_reason["hung"] > 0
    assert fragile.log.parents[1] != removed
    with NvlmClient(fragile.grpc_url, idle_timeout=20) as client:
        assert client.generate("Hello", options=SHORT).num_output_tokens == 4


def test_a_server_that_dies_is_replaced(fragile):
    before = fragile.restarts
    psutil.Process(fragile.process.pid).kill()
    wait_replaced(fragile, before)
    with NvlmClient(fragile.grpc_url, idle_timeout=20) as client:
        assert client.generate("Hello", options=SHORT).num_output_tokens == 4


@pytest.fixture
def serve(engine_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """`nvlm-trt serve` as a process."""
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "serve", str(engine_dir), "--json"]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_event(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    event = json.loads(process.stdout.readline())
    assert event["event"] == "ready"
    return event


def test_sigterm_ends_it_clean(serve):
    event = first_event(serve)
    children = psutil.Process(serve.pid).children(recursive=True)
    assert regions(serve.pid)
    assert len(children) >= 8
    idle = socket.create_connection(tuple(event["http"].split(":")))  # such a connection must not hold it up
    with NvlmClient(event["grpc"]) as client:
        stream = client.stream("Tell me", options=Options(max_tokens=200, min_tokens=200))
        next(iter(stream))
        serve.send_signal(signal.SIGTERM)
        assert stream.answer.num_output_tokens == 200  # a request under way is finished
    assert serve.wait(30) == 0
    idle.close()
    assert not regions(serve.pid)
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_killed_supervisor_leaves_no_server_and_the_next_one_removes_its_memory(serve, engine_dir):
    first_event(serve)
    assert regions(serve.pid)
    children = psutil.Process(serve.pid).children(recursive=True)
    serve.kill()
    serve.wait(10)
    assert not psutil.wait_procs(children, timeout=10)[1]
    with TritonServer(engine_dir, ports=FREE):
        assert not regions(serve.pid)


def test_sigterm_while_starting_ends_it_clean(serve):
    children = starting(serve)
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(30) == 0
    assert not regions(serve.pid)
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_supervisor_killed_while_starting_leaves_no_process(serve):
    children = starting(serve)
    serve.kill()
    serve.wait(10)
    assert not psutil.wait_procs(children, timeout=10)[1]


def starting(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The server's processes in the middle of its start, when its first model processes are there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        if len(children) > 3:
            return children
        time.sleep(0.02)
    raise AssertionError("no model process came up")


def test_a_port_in_use_is_a_clear_mistake(engine_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=f"127.0.0.1:{port}"):
            TritonServer(engine_dir, ports=Ports(port, 0, 0)).start()


def test_a_directory_without_a_package_is_a_clear_mistake(tmp_path):
    with pytest.raises(EngineError, match="no packaged engine"):
        TritonServer(tmp_path)
