"""Clients that go away, in every phase of their request (fault 13)."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from nvlm_trt.gateway.fetch import Fetcher
from nvlm_trt.gateway.settings import Limits

from .conftest import FaultRecord, OpenDoor, Watch
from .internet import Web, resolving
from .neighbour import LONG, Neighbour
from .served import Served, wait_until
from .test_images import file_of
from .test_waiting import metric
from .wire import CHAT, ask, chat, data_uri

Begin = Callable[[], Watch]
MODELS = ("nvlm", "vision_encoder", "tensorrt_llm", "preprocessing")
WINDOW = 0.05
"""Seconds over which the work of processes is looked at; the kernel counts it in hundredths."""

BUSY = 0.4
"""Share of a core from which on a process works; heartbeats and figures take a tenth."""


def send(address: str, body: object) -> socket.socket:
    """Ask, and wait for nothing."""
    host, port = address.split(":")
    data = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def hang_up(connections: Sequence[socket.socket]) -> float:
    """Close connections; when."""
    for connection in connections:
        connection.close()
    return time.monotonic()


@pytest.fixture
def alone(served: Served, neighbour: Neighbour) -> Iterator[None]:
    """Nobody else asks the server, so that what works works for those who go away."""
    with neighbour.paused():
        yield


def figure(served: Served, name: str) -> float:
    """A figure of tritonserver's own metrics."""
    with urllib.request.urlopen(f"http://{served.metrics}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name):
                return float(line.rpartition(" ")[2])
    return 0.0


def works_until(served: Served, seconds: float = 10) -> float:
    """When the models' processes have come to rest, in the time of `time.monotonic`; to `WINDOW`."""
    processes = [served.stub(model) for model in MODELS]
    rest, spent, at = time.monotonic(), cpu(processes), time.monotonic()
    deadline = at + seconds
    while at - rest < 8 * WINDOW:
        assert at < deadline, "the models work on for those who went away"
        time.sleep(WINDOW)
        now, total = time.monotonic(), cpu(processes)
        if total - spent > BUSY * (now - at):
            rest = now
        at, spent = now, total
    return rest


def cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def assert_free(served: Served) -> None:
    """No request is left in the decoder, and no block of its cache is held."""

    def free() -> bool:
        left = ("nvlm_kv_running_requests", "nvlm_kv_waiting_requests")
        blocks = figure(served, "nvlm_kv_blocks ") - figure(served, "nvlm_kv_free_blocks ")
        return blocks == 0 and not any(figure(served, name) for name in left)

    wait_until(free, 3, "the decoder holds on to a request whose client went away")
    assert metric(served.http, "nvlm_requests_working") == 0


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def photographs(number: int) -> dict[str, object]:
    """A request with three images of six tiles that no cache has seen."""
    files = [file_of(noise(3 * number + place, 672, 448), "JPEG", quality=80) for place in range(3)]
    return chat(f"Question {number}", [data_uri(file, "jpeg") for file in files])


def large(number: int) -> dict[str, object]:
    """A request whose image has 36 megapixels in a small file."""
    return chat(f"Question {number}", [red_of_36_megapixels()])


@functools.cache
def red_of_36_megapixels() -> str:
    return data_uri(file_of(Image.new("RGB", (6000, 6000), "red"), "PNG", compress_level=1))


def prompts(number: int) -> dict[str, object]:
    """A request with a prompt that fills the context and that no cache has seen."""
    return chat(" ".join(f"{number}{word}" for word in range(70)), max_tokens=2)


TILES_ENCODED, RUNNING = "nvlm_vision_cache_misses_total ", "nvlm_kv_running_requests "

PHASES: dict[str, tuple[Callable[[int], dict[str, object]], int, float | str]] = {
    "images are decoded": (large, 8, 0.2),
    "tiles are encoded": (photographs, 8, TILES_ENCODED),
    "prompts are read": (prompts, 8, 0.05),
    "answers are made": (lambda number: {**LONG, "messages": [{"role": "user", "content": f"{number}"}]}, 8, RUNNING),
    "whole answers are made": (
        lambda number: {**LONG, "stream": False, "messages": [{"role": "user", "content": f"{number}"}]},
        8,
        RUNNING,
    ),
}
"""What is asked, how often, and after how many seconds the clients go away, or once which figure has grown."""

LATER = ("images are decoded", "prompts are read", "whole answers are made")


@pytest.mark.fault(case=13)
@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=[pytest.mark.chaos] if name in LATER else []) for name in PHASES]
)
@pytest.mark.usefixtures("alone")
def test_clients_that_go_away_end_the_work_for_them(served: Served, fault_record: FaultRecord, phase: str) -> None:
    make, count, after = PHASES[phase]
    bodies = [make(number) for number in range(count)]
    cancelled = metric(served.http, 'nvlm_cancelled_total{route="chat"}')
    works_until(served)
    before = 0.0 if isinstance(after, float) else figure(served, after)
    connections = [send(served.http, body) for body in bodies]
    if isinstance(after, float):
        time.sleep(after)
    else:
        wait_until(lambda: figure(served, after) > before, 10, f"{after}did not grow")
    gone = hang_up(connections)
    took = works_until(served) - gone
    assert_free(served)
    counted = metric(served.http, 'nvlm_cancelled_total{route="chat"}') - cancelled
    assert counted >= count / 2, f"only {counted} of {count} were counted as cancelled: they were done before"
    assert took < 3
    assert "Traceback" not in served.log
    assert ask(served.http, CHAT, chat("Hello")).status == 200
    fault_record(time_ms=max(0.0, took) * 1000, variant=f"{count} clients, while {phase}")


@pytest.mark.fault(case=13)
def test_a_client_that_goes_away_while_it_is_queued_leaves_its_place(
    door: OpenDoor, limits: Limits, watch: Begin, fault_record: FaultRecord
) -> None:
    front = door(replace(limits, max_concurrent=1))
    began = watch()
    with contextlib.closing(send(front.address, LONG)):
        wait_until(lambda: metric(front.address, "nvlm_requests_working") == 1, 10, "the place was not taken")
        waiting = send(front.address, LONG)
        wait_until(lambda: metric(front.address, "nvlm_requests_waiting") == 1, 10, "nobody waits")
        hang_up([waiting])
        took = wait_until(lambda: metric(front.address, "nvlm_requests_waiting") == 0, 5, "it still waits")
        assert metric(front.address, 'nvlm_cancelled_total{route="chat"}') == 1
    growth, seen = began.end()
    fault_record(time_ms=took * 1000, memory_mb=growth, others=seen, variant="queued")


@pytest.mark.fault(case=13)
def test_a_client_that_goes_away_while_its_image_is_fetched_ends_the_fetching(
    internet: Web, door: OpenDoor, limits: Limits, watch: Begin, fault_record: FaultRecord
) -> None:
    host = f"img.example.com:{internet.port}"
    fetcher = Fetcher((host,), 8 << 20, resolve=resolving(["127.0.0.1"]), allowed=lambda _: True)
    front = door(replace(limits, fetch_time=30), fetcher=fetcher)
    internet.patience, before = True, internet.seen.count("slow")
    internet.hung_up.clear()
    began = watch()
    connection = send(front.address, chat(images=[f"http://{host}/slow"]))
    wait_until(lambda: internet.seen.count("slow") > before, 10, "it is not fetched")
    gone = hang_up([connection])
    assert internet.hung_up.wait(5)
    took = time.monotonic() - gone
    growth, seen = began.end()
    assert metric(front.address, 'nvlm_cancelled_total{route="chat"}') == 1
    fault_record(time_ms=took * 1000, memory_mb=growth, others=seen, variant="fetching")
