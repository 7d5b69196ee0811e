"""How far a build is told from its log and its engines, for ranks one by one and side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from nvlm_trt.decoder.trtllm_build_watch import QUIET_SECONDS, BuildWatch

# As TensorRT-LLM 1.2 and TensorRT write them; those of no phase are there to be passed over.
BEGIN = """\
[11/24/2026-10:00:00] [TRT-LLM] [I] Set PluginConfig.gemm_plugin to None.
[11/24/2026-10:00:01] [TRT-LLM] [W] max_num_tokens (16384) shouldn't be greater than ...
"""
NETWORK = """\
[11/24/2026-10:03:00] [TRT-LLM] [I] Total time of constructing network from module object 179.27 seconds
[11/24/2026-10:03:00] [TRT-LLM] [I] Total optimization profiles added: 1
[11/24/2026-10:03:01] [TRT-LLM] [I] Total time to initialize the weights in network Unnamed Network 0: 00:00:01
[11/24/2026-10:03:01] [TRT-LLM] [I] Build TensorRT engine Unnamed Network 0
"""
ENGINE = """\
[11/24/2026-10:20:00] [TRT] [I] Engine generation completed in 1019.2 seconds.
[11/24/2026-10:20:01] [TRT-LLM] [I] Total time of building Unnamed Network 0: 00:16:59
[11/24/2026-10:20:01] [TRT-LLM] [I] Timing cache serialized to timing.cache
[11/24/2026-10:20:01] [TRT-LLM] [I] Build phase peak memory: 176257.29 MB, children: 17.65 MB
"""
WRITING = "[11/24/2026-10:20:02] [TRT-LLM] [I] Serializing engine to /e/decoder/engine/rank{}.engine...\n"
WRITTEN = "[11/24/2026-10:21:02] [TRT-LLM] [I] Engine serialized. Total time: 00:01:00\n"
END = "[11/24/2026-10:45:00] [TRT-LLM] [I] Total time of building all engines: 00:45:00\n"


class Watched:
    """A build of two ranks of 1000 and 3000 bytes, its log and engines written by the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "build.log"
        self.done: list[int] = []
        self.lines: list[str] = []
        ranks = {"rank0.engine": 1000, "rank1.engine": 3000}
        self.watch = BuildWatch(root, self.path, ranks, self.report, self.lines.append)
        self.seconds = 0.0

    def report(self, done: int, total: int) -> None:
        assert total == 4000
        self.done.append(done)

    def engine(self, rank: int, size: int) -> None:
        (self.root / f"rank{rank}.engine").write_bytes(b"x" * size)

    def look(self, after: float = 1.0) -> int:
        self.seconds += after
        self.watch.look(self.seconds, lambda: 210 * 10**9)
        return self.done[-1]

    def writes(self, *texts: str) -> int:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(texts))
        return self.look()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def rising(figures: Iterable[int]) -> bool:
    values = list(figures)
    return values == sorted(values)


def test_ranks_one_by_one_count_by_their_phases_and_bytes(watched: Watched) -> None:
    assert watched.look() == 0
    assert watched.writes(BEGIN) == 0
    assert watched.writes(NETWORK) == 300
    assert watched.writes(ENGINE, WRITING.format(0)) == 800
    watched.engine(0, 500)
    assert watched.look() == 900
    watched.engine(0, 1000)
    assert watched.writes(WRITTEN) == 1000
    assert watched.writes(NETWORK) == 1000 + 900
    assert watched.writes(ENGINE, WRITING.format(1)) == 1000 + 2400
    watched.engine(1, 3000)
    assert watched.writes(WRITTEN, END) == 4000


def test_an_engine_may_be_smaller_or_larger_than_the_weights_it_is_made_of(watched: Watched) -> None:
    # trtllm-build itself makes 8 bits of the 16 that a weight-only checkpoint holds.
    watched.writes(NETWORK, ENGINE, WRITING.format(0))
    watched.engine(0, 520)
    assert watched.writes(WRITTEN) == 1000
    watched.writes(NETWORK, ENGINE, WRITING.format(1))
    watched.engine(1, 3300)
    assert watched.look() == 4000
    assert watched.writes(WRITTEN, END) == 4000


def test_ranks_side_by_side_never_go_back(watched: Watched) -> None:
    for text in (NETWORK, NETWORK, ENGINE, WRITING.format(1), ENGINE, WRITING.format(0), WRITTEN, WRITTEN, END):
        if "Serializing" in text:
            watched.engine(1, 3000)
        watched.writes(text)
    watched.engine(0, 1000)
    assert watched.look() == 4000
    assert rising(watched.done)


def test_each_engine_that_is_built_is_told_with_the_memory_it_took(watched: Watched) -> None:
    watched.writes(NETWORK, ENGINE, WRITING.format(0))
    assert watched.lines == ["the engine of rank 0 is built, with 184.8 GB of host memory"]
    watched.writes(WRITTEN, NETWORK, ENGINE, WRITING.format(11))
    assert watched.lines[1:] == ["the engine of rank 11 is built, with 184.8 GB of host memory"]


def test_a_line_that_is_not_finished_is_read_with_its_rest(watched: Watched) -> None:
    for half in (NETWORK[:120], NETWORK[120:]):
        done = watched.writes(half)
    assert done == 300


def test_silence_is_told_of_every_few_minutes_and_words_end_it(watched: Watched) -> None:
    watched.writes(NETWORK)
    watched.look(QUIET_SECONDS - 1)
    assert watched.lines == []
    watched.look(1)
    watched.look(1)
    (line,) = watched.lines
    assert line.startswith("trtllm-build runs for 3 min and holds 210.0 GB of host memory")
    assert "0 of 2 engines are written, of the next one kernels are being chosen" in line
    assert "nothing in its log for 3 min" in line
    watched.look(QUIET_SECONDS - 1)
    assert "nothing in its log for 6 min" in watched.lines[1]
    watched.writes("a word\n")
    watched.look(QUIET_SECONDS - 1)
    assert len(watched.lines) == 2


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((), "0 of 2 engines are written, of the next one its weights are being loaded"),
        (
            (NETWORK, ENGINE, WRITING.format(0)),
            "0 of 2 engines are written, of the next one its engine is being written",
        ),
        ((NETWORK, ENGINE, WRITTEN), "1 of 2 engines are written, of the next one its weights are being loaded"),
        ((NETWORK, ENGINE, WRITTEN, NETWORK), "1 of 2 engines are written, of the next one kernels are being chosen"),
        ((NETWORK, ENGINE, WRITTEN) * 2, "all engines are written"),
    ],
)
def test_a_silent_build_is_at_something(texts: tuple[str, ...], words: str, watched: Watched) -> None:
    watched.writes(*texts)
    watched.look(QUIET_SECONDS)
    assert words in watched.lines[-1]
