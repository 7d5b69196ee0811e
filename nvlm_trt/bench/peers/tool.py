"""What a load tool of others is told, how it is run, and how its times become our metrics."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nvlm_trt.bench.metrics.load import (
    ImageThroughput,
    InterTokenLatency,
    RequestLatency,
    TimeToFirstToken,
    TokenThroughput,
)
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import ServerError

ToolName = Literal["perf_analyzer", "aiperf"]

TRANSPORTS: Final[dict[ToolName, Literal["grpc", "http"]]] = {"perf_analyzer": "grpc", "aiperf": "http"}
"""Beside which of our own transports a tool stands: each streams over one of them only."""

Figures = dict[str, tuple[float, ...]]
"""Samples by the name of our metric, in its unit."""

TIMEOUT_S: Final = 1800.0
TAIL: Final = 400
"""Characters of a failed tool's last words that are shown."""


@dataclass(frozen=True, slots=True)
class PeerTask:
    """What a tool shall do: what we do ourselves at the same concurrency.

    Attributes:
        url: ``host:port`` of the server.
        questions: What is asked, one request each.
        concurrency: Requests under way.
        max_tokens: Tokens of every answer.
        tokenizer: The folder of the engine's tokenizer; None where the engine is not known.
        scratch: An empty folder for the tool's files.
    """

    url: str
    questions: Sequence[Question]
    concurrency: int
    max_tokens: int
    tokenizer: Path | None
    scratch: Path


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """One request as a tool saw it: its start, its first response and its end, in nanoseconds of one clock."""

    started_ns: int
    first_ns: int
    ended_ns: int


def found(tool: ToolName) -> str | None:
    """Its path; None where it is not on PATH."""
    return shutil.which(tool)


def run_tool(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a tool in a folder of its own.

    Raises:
        ServerError: it is not there, or it failed; with its last words.
    """
    name = Path(command[0]).name
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=True,
        )
    except OSError as error:
        raise ServerError(f"{name} cannot be run ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        words = error.stdout.decode(errors="replace").strip()[-TAIL:]
        raise ServerError(f"{name} ended with code {error.returncode}", seen=words) from None
    except subprocess.TimeoutExpired:
        raise ServerError(f"{name} did not end", seen=f"{TIMEOUT_S:g} s") from None


def left_by(tool: str, file: Path) -> bytes:
    """What a tool that has ended left.

    Raises:
        ServerError: nothing that can be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ServerError(f"{tool} left no {file.name} ({error.strerror})") from None


def as_figures(requests: Sequence[PeerRequest], task: PeerTask) -> Figures:
    """A tool's times in our metrics, by our formulas, in our units.

    The tools count tokens by chunks or with a tokenizer of their own; every answer has `max_tokens` of them, so their
    times are divided by that.

    Raises:
        ServerError: the tool reported another number of requests, or requests that took no time.
    """
    if len(requests) != len(task.questions):
        raise ServerError(
            "the tool reported another number of requests", seen=len(requests), expected=len(task.questions)
        )
    if not all(each.started_ns <= each.first_ns <= each.ended_ns > each.started_ns for each in requests):
        raise ServerError("the tool reported requests that end before they begin, or at once")
    tokens = task.max_tokens
    wall = (max(each.ended_ns for each in requests) - min(each.started_ns for each in requests)) / 1e9
    images = sum(len(question.images) for question in task.questions)
    figures: Figures = {
        TimeToFirstToken.name: tuple((each.first_ns - each.started_ns) / 1e6 for each in requests),
        InterTokenLatency.name: tuple((each.ended_ns - each.first_ns) / 1e6 / (tokens - 1) for each in requests),
        RequestLatency.name: tuple((each.ended_ns - each.started_ns) / 1e6 for each in requests),
        TokenThroughput.name: (len(requests) * tokens / wall,),
    }
    return {**figures, ImageThroughput.name: (images / wall,)} if images else figures
