"""NVIDIA's perf_analyzer, streaming over gRPC.

Flags as tried with the one of the release 24.10 (2.51), which the old manylinux1 wheels of tritonclient carry.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

from nvlm_trt.bench.peers.tool import Figures, PeerRequest, PeerTask, as_figures, left_by, run_tool
from nvlm_trt.bench.workload import Question
from nvlm_trt.client.request import MODEL
from nvlm_trt.errors import ServerError


def run_perf_analyzer(task: PeerTask) -> Figures:
    """Run it; samples by the name of our metric, in its unit.

    Raises:
        ServerError: it failed, or left no export, or another than that of 2.51.
    """
    data, export = task.scratch / "input.json", task.scratch / "profile.json"
    data.write_text(json.dumps({"data": [_entry(question, task.max_tokens) for question in task.questions]}))
    run_tool(command(task, data, export), task.scratch)
    return as_measured(left_by("perf_analyzer", export), task)


def command(task: PeerTask, data: Path, export: Path) -> list[str]:
    """Its command line."""
    return [
        "perf_analyzer",
        *("-m", MODEL, "-i", "grpc", "-u", task.url),
        *("--async", "--streaming"),
        *("--input-data", str(data)),
        *("--concurrency-range", f"{task.concurrency}:{task.concurrency}"),
        *("--request-count", str(len(task.questions))),
        *("--profile-export-file", str(export)),
    ]


def as_measured(export: bytes, task: PeerTask) -> Figures:
    """The figures of a profile export.

    The file holds the requests' images as raw bytes inside JSON strings, hence latin-1.

    Raises:
        ServerError: it holds something else.
    """
    try:
        raw = json.loads(export.decode("latin-1"), strict=False)
        requests = [_request(each) for experiment in raw["experiments"] for each in experiment["requests"]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ServerError(f"perf_analyzer left another export than expected ({error!r})") from None
    return as_figures(requests, task)


def _request(raw: dict[str, Any]) -> PeerRequest:
    times = raw["response_timestamps"]
    return PeerRequest(int(raw["timestamp"]), int(times[0]), int(times[-1]))


def _entry(question: Question, max_tokens: int) -> dict[str, Any]:
    """One request. Images are BYTES: raw data of such a tensor has each element's length in front."""
    entry: dict[str, Any] = {
        "text_input": [question.text],
        "max_tokens": [max_tokens],
        "min_tokens": [max_tokens],
        "stream": [True],
    }
    if question.images:
        raw = b"".join(struct.pack("<I", len(data)) + data for data in question.images)
        entry["image_bytes"] = {"b64": base64.b64encode(raw).decode(), "shape": [len(question.images)]}
    return entry
