#!/usr/bin/env python
"""What a request costs through Triton against the same engines in this process, and where that goes.

    python scripts/measure_hops.py ENGINE_DIR [--rounds 12] [--tokens 64] [--streams 1,8]

ENGINE_DIR is of the cpu target and packaged. Server and engines run on one machine, asked in turns. First token: the
time of an answer of one token. Token: (time of an answer of --tokens - time of one) / (--tokens - 1), streamed.
"budget" is what the server may take: 5% more than this process, and 5 ms. Below that, milliseconds a request of each
model from the server's own statistics (of a model that hands its requests over they have no more than the handing
over), and CPU milliseconds a request of each process. Only a quiet machine gives figures that can be quoted.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine

QUESTION = "What is it?"
PHOTOGRAPH = Path(__file__).parents[1] / "examples" / "cup.png"
SIZE = (1344, 896)
"""Three by two tiles of 448 pixels, and a thumbnail."""

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")

Ask = Callable[[list[bytes], int], float]
"""Seconds of an answer about these images of so many tokens."""

Figures = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of request.

    Attributes:
        name: For the reader.
        images: Makes the images of the next request.
        streams: Requests at the same time.
    """

    name: str
    images: Callable[[], list[bytes]]
    streams: int


def pictures() -> tuple[Callable[[], list[bytes]], Callable[[], list[bytes]]]:
    """Images that nobody has seen before, and one that everybody has."""
    photograph = np.asarray(Image.open(PHOTOGRAPH).convert("RGB").resize(SIZE))
    random = np.random.default_rng()

    def fresh() -> list[bytes]:
        pixels, file = photograph.copy(), io.BytesIO()
        pixels[::64, ::64] = random.integers(0, 256, pixels[::64, ::64].shape, dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return [file.getvalue()]

    same = fresh()
    return fresh, lambda: same


def through(client: NvlmClient) -> Ask:
    """Ask the server."""

    def ask(images: list[bytes], tokens: int) -> float:
        started = time.perf_counter()
        options = Options(max_tokens=tokens, min_tokens=tokens)
        with client.stream(QUESTION, images=images, options=options) as stream:
            for _ in stream:
                continue
        return time.perf_counter() - started

    return ask


def inside(engine: LocalEngine) -> Ask:
    """Ask the engines in this process."""

    def ask(images: list[bytes], tokens: int) -> float:
        started = time.perf_counter()
        engine.generate(QUESTION, SamplingParams(tokens, min_tokens=tokens), images=images)
        return time.perf_counter() - started

    return ask


def together(ask: Ask, scene: Scene, tokens: int) -> float:
    """Median seconds of requests that start together."""
    images = [scene.images() for _ in range(scene.streams)]
    with ThreadPoolExecutor(scene.streams) as callers:
        return statistics.median(callers.map(lambda each: ask(each, tokens), images))


def spent(server: TritonServer) -> tuple[Figures, Figures]:
    """What the server's models and processes have taken so far: requests and ms of each model, CPU ms."""
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/stats", timeout=10) as answer:
        models: list[dict[str, Any]] = json.load(answer)["model_stats"]
    seen: Figures = {}
    for model in models:
        parts = model["inference_stats"]
        times = tuple(parts[part].get("ns", 0) / 1e6 for part in PARTS)
        seen[model["name"]] = (parts["success"].get("count", 0), *times)
    root = psutil.Process(server.process.pid)
    cpu = {"tritonserver": 1e3 * sum(root.cpu_times()[:2])}
    for process in root.children(recursive=True):
        name = next((word.split("/")[-3] for word in process.cmdline() if word.endswith("/model.py")), process.name())
        cpu[name] = cpu.get(name, 0.0) + 1e3 * sum(process.cpu_times()[:2])
    return seen, {name: (taken,) for name, taken in cpu.items()}


def grown(before: Figures, after: Figures, by: float) -> Figures:
    """What has come since, divided."""
    return {
        name: tuple((now - then) / by for now, then in zip(values, before[name], strict=True))
        for name, values in after.items()
        if name in before
    }


def measure(server: TritonServer, asks: Sequence[Ask], scene: Scene, rounds: int, tokens: int) -> None:
    """Take and print the figures of one kind of request; `asks` are this process and the server."""
    for ask in asks:
        together(ask, scene, 2)
    before = spent(server)
    first: tuple[list[float], list[float]] = ([], [])
    each: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for place, ask in enumerate(asks):
            alone = together(ask, scene, 1)
            first[place].append(alone)
            each[place].append((together(ask, scene, tokens) - alone) / (tokens - 1))
    models, cpu = (grown(then, now, 1) for then, now in zip(before, spent(server), strict=True))
    print(f"{scene.name}, {scene.streams} at a time")
    for what, (ours, theirs) in (("first token", first), ("token", each)):
        here, there = (1e3 * statistics.median(times) for times in (ours, theirs))
        budget = 1.05 * here + 5
        print(f"  {what:12} here {here:9.2f} ms, served {there:9.2f} ms, budget {budget:9.2f} ms")
    for name, (count, *times) in models.items():
        if count:
            parts = ", ".join(f"{part} {taken / count:.2f}" for part, taken in zip(PARTS, times, strict=True))
            print(f"  {name:20} {count:5.0f} requests: {parts} ms")
    asked = 2 * rounds * scene.streams
    shares = ", ".join(f"{name} {taken / asked:.2f}" for name, (taken,) in cpu.items() if taken / asked >= 0.05)
    print(f"  CPU ms a request of {(tokens + 1) / 2:g} tokens: {shares}", flush=True)


def main() -> None:
    """Read the command line, serve, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", default="1,8")
    options = parser.parse_args()
    fresh, same = pictures()
    with (
        TritonServer(options.engine_dir, ports=Ports(0, 0, 0)) as server,
        LocalEngine(options.engine_dir) as engine,
        NvlmClient(server.grpc_url, idle_timeout=600) as client,
    ):
        asks = (inside(engine), through(client))
        for streams in (int(word) for word in options.streams.split(",")):
            for name, images in (("text", list[bytes]), ("a new image", fresh), ("the same image", same)):
                measure(server, asks, Scene(name, images, streams), options.rounds, options.tokens)


if __name__ == "__main__":
    main()
