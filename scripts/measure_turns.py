#!/usr/bin/env python
"""What it costs to encode tiles in slices, and how long a decoder step waits for one.

    python scripts/measure_turns.py ENGINE_DIR [--rounds 6] [--streams 7] [--threads 0]

ENGINE_DIR is of the cpu target and built up to decoder-compile. A tile is encoded in one piece and in slices, in turns;
then streams decode. Times are of the clock and of the processor, the least of the rounds: the clock is right on a quiet
machine, the processor's time nearly right on a busy one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams, TokenEvent
from nvlm_trt.engine_files import DECODER_CPU, VISION_CPU
from nvlm_trt.turns import Turns
from nvlm_trt.vision.runner import VisionRunner

PROMPT_TOKENS = 64
ANSWER_TOKENS = 32

Times = npt.NDArray[np.float64]
"""Milliseconds of the clock and of the processor."""

Moment = tuple[float, float]
"""Seconds of the clock and of this process's processor time."""


def now() -> Moment:
    """This moment."""
    return time.perf_counter(), time.process_time()


def between(moments: Sequence[Moment]) -> Times:
    """Milliseconds between moments: [moments - 1, 2]."""
    return 1e3 * np.array([np.subtract(later, earlier) for earlier, later in pairwise(moments)])


class Marked(Turns):
    """Nobody to take turns with; the moments at which the turn was passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []

    def pass_on(self) -> None:
        """Note the moment."""
        self.moments.append(now())


def measure_tile(engine_dir: Path, rounds: int, threads: int) -> Times:
    """Print what slices cost; returns the longest one: [clock, processor] ms."""
    marked = Marked()
    whole = VisionRunner(engine_dir / VISION_CPU, threads=threads)
    sliced = VisionRunner(engine_dir / VISION_CPU, threads=threads, turns=marked)
    side = whole.tile_size
    tile = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    pieces: list[Times] = []
    slices: list[Times] = []
    for number in range(rounds + 1):
        for runner in (whole, sliced) if number % 2 else (sliced, whole):
            marked.moments.clear()
            began = now()
            runner.encode(tile)
            if number:  # the first round warms up
                (slices if runner is sliced else pieces).append(between([began, *marked.moments, now()]))
    plain, cut = (np.min([each.sum(axis=0) for each in runs], axis=0) for runs in (pieces, slices))
    least = np.min(slices, axis=0)
    print(f"a tile: in one piece {show(plain)}, in {len(least)} slices {show(cut)}, ratio {show(cut / plain, 3)}")
    print(f"  a slice: median {show(np.median(least, axis=0))}, longest {show(least.max(axis=0))}")
    longest: Times = least.max(axis=0)
    return longest


def note(moments: list[Moment], _: TokenEvent) -> None:
    """Note when a token came."""
    moments.append(now())


def measure_step(engine_dir: Path, streams: int, threads: int) -> Times:
    """The usual gap between two tokens of so many streams: [clock, processor] ms."""
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 256, PROMPT_TOKENS).astype(np.int32) for _ in range(streams)]
    moments: list[list[Moment]] = [[] for _ in prompts]
    with DecoderEngine.load(engine_dir / DECODER_CPU, threads=threads) as engine:
        for place, (prompt, came) in enumerate(zip(prompts, moments, strict=True)):
            request = DecodeRequest(str(place), prompt, None, SamplingParams(ANSWER_TOKENS))
            engine.submit(request, partial(note, came))
        while engine.status().running or engine.status().waiting:
            time.sleep(0.05)
    # The first tokens come while the other prompts are read, the last ones may come when others have ended.
    steps = np.concatenate([between(each[ANSWER_TOKENS // 4 : -ANSWER_TOKENS // 4]) for each in moments])
    gap: Times = np.median(steps, axis=0)
    return gap


def show(times: Times, digits: int = 1) -> str:
    """Clock and processor."""
    clock, processor = times
    return f"{clock:.{digits}f} ({processor:.{digits}f})"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print("milliseconds of the clock (of the processor)")
    longest = measure_tile(options.engine_dir, options.rounds, options.threads)
    step = measure_step(options.engine_dir, options.streams, options.threads)
    print(f"a step of {options.streams} streams: {show(step)}; with the longest slice before it: ", end="")
    print(f"{show((step + longest) / step, 2)} times as long")


if __name__ == "__main__":
    main()
