"""A model that is unloaded ends in order: with its figures, before its process loses the way to the server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nvlm_trt.client import AsyncNvlmClient, NvlmClient, Options
from nvlm_trt.host.command import ADMIN_HEADER
from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.host.environment import Triton
from nvlm_trt.host.nodes import Nodes
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.process import TritonProcess
from nvlm_trt.host.selftest import unload_model
from nvlm_trt.loopback import LOOPBACK

LONG = Options(max_tokens=400, min_tokens=400)


@pytest.fixture
def ports() -> Iterator[Ports]:
    held = Ports(0, 0, 0).held(LOOPBACK)
    yield held.ports
    held.release()


@pytest.fixture
def process(engine_dir: Path, ports: Ports, tmp_path: Path) -> Iterator[TritonProcess]:
    """A server that nobody replaces when its processes end."""
    engine = ServedEngine.open(engine_dir)
    options = engine.options(LOOPBACK, ports, Nodes(), start_timeout=None, hang_timeout=8.0, grace=5.0)
    running = TritonProcess(Triton.find(), options, tmp_path)
    try:
        running.wait_ready(threading.Event())
        yield running
    finally:
        running.kill()


def figures(ports: Ports) -> set[str]:
    """Names of our figures on the metrics port."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{ports.metrics}/metrics", timeout=10) as answer:
        return set(re.findall(r"^(nvlm_\w+)", answer.read().decode(), re.MULTILINE))


def ask(ports: Ports) -> None:
    """A request whose every stage is observed."""
    body = json.dumps({"text_input": "Hello", "max_tokens": 4}).encode()
    url = f"http://{LOOPBACK}:{ports.http}/v2/models/nvlm/generate"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
        assert answer.status == 200


def leave(url: str, first: Callable[[], object]) -> None:
    """Do something while an answer comes, then leave it."""
    with NvlmClient(url) as client, client.stream("Tell me", options=LONG) as stream:
        next(iter(stream))
        first()


def leave_async(url: str, first: Callable[[], object]) -> None:
    """The same with the other client."""

    async def main() -> None:
        async with AsyncNvlmClient(url) as client, client.stream("Tell me", options=LONG) as stream:
            await anext(aiter(stream))
            first()

    asyncio.run(main())


@pytest.fixture
def unload(process: TritonProcess, ports: Ports) -> Callable[[str], bool]:
    """Unloads a model, as a server that ends does."""
    words = psutil.Process(process.pid).cmdline()
    key = next(re.search(f"{ADMIN_HEADER}=(\\w+)", word) for word in words if ADMIN_HEADER in word)
    return lambda model: unload_model(f"{LOOPBACK}:{ports.http}", model, {ADMIN_HEADER: key[1]})


def test_the_figures_of_a_model_end_with_it(ports, unload):
    ask(ports)
    assert {"nvlm_preprocessing_seconds_count", "nvlm_kv_blocks", "nvlm_vision_cache_tiles"} <= figures(ports)
    for model in ("ensemble", "nvlm", "multimodal_decoder", "tensorrt_llm", "vision_encoder"):
        assert unload(model)
    deadline = time.monotonic() + 30
    while figures(ports) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert figures(ports) == set()


@pytest.mark.parametrize("leave", [leave, leave_async])
def test_a_request_that_is_given_up_ends_though_its_model_takes_no_more_requests(process, ports, unload, leave):
    """By itself: a server that ends takes no request to end another, and cancelling a stream may hang it."""
    leave(f"{LOOPBACK}:{ports.grpc}", lambda: unload("nvlm"))
    deadline = time.monotonic() + 30
    while process.active_requests() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.active_requests() == 0
