"""What the gateway costs, how soon a hang-up ends decoding, and how soon a full server says so.

``python scripts/measure_gateway.py ENGINE_DIR [--rounds N]`` starts the server of an engine directory, asks it by gRPC
and through the gateway in turns, and prints the times in milliseconds: of single tokens, so that what is measured is
the way there and back, and of streams. Where other work runs, the differences are what counts.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import skimage.data
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer

PLACES = 64
STREAMED = 32
"""Tokens of a stream."""

WARM = 10
SETTLE_SECONDS = 0.15
"""For a request to reach the decoder's queue."""

Asked = TypeVar("Asked")
Taken = TypeVar("Taken")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    settings = GatewaySettings(Limits(max_concurrent=PLACES // 2, max_queue=PLACES // 2, queue_time=600))
    with TritonServer(asked.engine_dir, ports=Ports(0, 0, 0), gateway=settings) as server:
        for name, files in (("text", []), ("one photograph", [_photograph()])):
            _compare(server, name, files, asked.rounds)
        _compare_streams(server, asked.rounds)
        recipe = ServedEngine.open(asked.engine_dir).recipe
        question = _body("Tell me", max_tokens=recipe.max_output_len, ignore_eos=True, stream=True)
        _hang_up(server, question, recipe.max_batch_size, asked.rounds // 10)
        _fill(server, question, asked.rounds)


def _compare(server: TritonServer, name: str, files: Sequence[bytes], rounds: int) -> None:
    connection = http.client.HTTPConnection(server.http_url)
    parts = [{"type": "image_url", "image_url": {"url": _uri(file)}} for file in files]
    body = _body([*parts, {"type": "text", "text": "What?"}], max_tokens=1)
    with NvlmClient(server.grpc_url) as client:

        def over_grpc() -> None:
            client.generate("What?", images=files, options=Options(max_tokens=1))

        def through_gateway() -> None:
            connection.request("POST", "/v1/chat/completions", body)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        times = _in_turns({"gRPC": over_grpc, "gateway": through_gateway}, rounds, _timed)
    connection.close()
    _show(name, times)


def _compare_streams(server: TritonServer, rounds: int) -> None:
    """Streams: to the first text, and to the end."""
    connection = http.client.HTTPConnection(server.http_url)
    body = _body("What?", max_tokens=STREAMED, ignore_eos=True, stream=True)
    options = Options(max_tokens=STREAMED, min_tokens=STREAMED)
    with NvlmClient(server.grpc_url) as client:

        def over_grpc() -> tuple[float, float]:
            began = time.perf_counter()
            with client.stream("What?", options=options) as stream:
                pieces = iter(stream)
                next(pieces)
                first = time.perf_counter()
                for _ in pieces:
                    continue
            return (first - began) * 1000, (time.perf_counter() - began) * 1000

        def through_gateway() -> tuple[float, float]:
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body)
            answer = connection.getresponse()
            while b'"content":"' not in (line := answer.readline()) or b'"content":""' in line:
                assert line, "the stream ended without a text"
            first = time.perf_counter()
            answer.read()
            return (first - began) * 1000, (time.perf_counter() - began) * 1000

        times = _in_turns({"gRPC": over_grpc, "gateway": through_gateway}, rounds, lambda ask: ask())
    connection.close()
    for place, what in enumerate(("first text", "all")):
        _show(f"a stream of {STREAMED}, {what}", {way: [one[place] for one in taken] for way, taken in times.items()})


def _in_turns(ways: dict[str, Asked], rounds: int, take: Callable[[Asked], Taken]) -> dict[str, list[Taken]]:
    """What each way takes, in each round; the first rounds warm up."""
    times: dict[str, list[Taken]] = {way: [] for way in ways}
    for place in range(rounds + WARM):
        for way, ask in ways.items():
            taken = take(ask)
            if place >= WARM:
                times[way].append(taken)
    return times


def _show(name: str, times: dict[str, list[float]]) -> None:
    for way, taken in times.items():
        print(f"{name}, {way}: {_shown(taken)}")
    extra = [gateway - grpc for grpc, gateway in zip(times["gRPC"], times["gateway"], strict=True)]
    print(f"{name}, gateway less gRPC, round by round: {_shown(extra)}")


def _hang_up(server: TritonServer, question: bytes, batch: int, rounds: int) -> None:
    """From a client's close to the first token of the request that waited for its place in the decoder's batch."""
    times = []
    for _ in range(rounds):
        running = [_begin(server, question) for _ in range(batch)]
        for connection in running:
            connection.getresponse().readline()
        waiting = _begin(server, _body("x", max_tokens=1, stream=True))
        time.sleep(SETTLE_SECONDS)
        began = time.perf_counter()
        running[0].close()
        waiting.getresponse().read()
        times.append((time.perf_counter() - began) * 1000)
        for connection in [*running, waiting]:
            connection.close()
    print(f"hang-up to the next one's first token: {_shown(times)}")


def _begin(server: TritonServer, body: bytes) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(server.http_url)
    connection.request("POST", "/v1/chat/completions", body)
    return connection


def _fill(server: TritonServer, question: bytes, rounds: int) -> None:
    """The refusal of a server whose places are all taken."""
    while _present(server):
        time.sleep(0.01)  # those who hung up before
    held = [_begin(server, question) for _ in range(PLACES)]
    while _present(server) < PLACES:
        time.sleep(0.01)
    times = []
    probe = http.client.HTTPConnection(server.http_url)
    for _ in range(rounds):
        began = time.perf_counter()
        probe.request("POST", "/v1/chat/completions", _body("x", max_tokens=1))
        answer = probe.getresponse()
        answer.read()
        if answer.status == 503:
            times.append((time.perf_counter() - began) * 1000)
    for connection in [*held, probe]:
        connection.close()
    print(f"refusal of a full server ({len(times)} of them): {_shown(times)}")


def _timed(ask: Callable[[], None]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000


def _present(server: TritonServer) -> float:
    """Requests that have a place."""
    with urllib.request.urlopen(f"http://{server.http_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ("nvlm_requests_working ", "nvlm_requests_waiting ")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def _body(content: object, **fields: object) -> bytes:
    return json.dumps({"model": "nvlm", "messages": [{"role": "user", "content": content}], **fields}).encode()


def _photograph() -> bytes:
    file = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(file, "JPEG", quality=90)
    return file.getvalue()


def _uri(file: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


def _shown(times: Sequence[float]) -> str:
    if len(times) < 2:
        return "too few"
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {statistics.median(times):.2f} ms, p99 {cuts[98]:.2f} ms"


if __name__ == "__main__":
    main()
