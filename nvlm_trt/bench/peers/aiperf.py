"""NVIDIA's AIPerf, streaming over HTTP through generate_stream.

Tried with 0.13.0. It has no endpoint type of Triton's own: its `template` type writes the body from a file, and it
needs a tokenizer folder with tokenizer.json, which is made here from the engine's.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from nvlm_trt.bench.ask.served import STREAM_PATH
from nvlm_trt.bench.peers.tool import Figures, PeerRequest, PeerTask, as_figures, left_by, run_tool
from nvlm_trt.client.request import MODEL
from nvlm_trt.errors import ServerError
from nvlm_trt.model.tokenizer import build_bpe, read_merges

RECORDS: Final = "profile_export.jsonl"


def run_aiperf(task: PeerTask) -> Figures:
    """Run it; samples by the name of our metric, in its unit.

    Raises:
        ServerError: it failed, or left no records, or others than those of 0.13.
    """
    body, inputs, out = task.scratch / "body.json", task.scratch / "inputs.jsonl", task.scratch / "out"
    body.write_text(_template(task), encoding="utf-8")
    inputs.write_text("".join(json.dumps(line) + "\n" for line in _inputs(task)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # it breaks folders
    run_tool(command(task, body, inputs, out, _tokenizer(task)), task.scratch, environment)
    return as_measured(left_by("AIPerf", out / RECORDS), task)


def command(task: PeerTask, body: Path, inputs: Path, out: Path, tokenizer: Path) -> list[str]:
    """Its command line."""
    count = str(len(task.questions))
    return [
        *("aiperf", "profile", "--model", MODEL, "--url", f"http://{task.url}"),
        *("--endpoint-type", "template", "--endpoint", STREAM_PATH, "--streaming"),
        *("--extra-inputs", f"payload_template:{body}", "--extra-inputs", "response_field:text_output"),
        *("--tokenizer", str(tokenizer)),
        *("--custom-dataset-type", "single_turn", "--input-file", str(inputs)),
        *("--concurrency", str(task.concurrency), "--request-count", count),
        *("--workers-max", "1", "--record-processors", "1"),
        *("--ui", "none", "--no-gpu-telemetry", "--output-artifact-dir", str(out)),
    ]


def as_measured(records: bytes, task: PeerTask) -> Figures:
    """The figures of profile_export.jsonl: one record a request.

    Raises:
        ServerError: it holds something else.
    """
    try:
        lines = [json.loads(line) for line in records.splitlines() if line]
        requests = [_request(line) for line in lines]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ServerError(f"AIPerf left other records than expected ({error!r})") from None
    return as_figures(requests, task)


def _request(raw: dict[str, Any]) -> PeerRequest:
    started = int(raw["metadata"]["request_start_ns"])
    first, whole = (raw["metrics"][name] for name in ("time_to_first_token", "request_latency"))
    if not first["unit"] == whole["unit"] == "ms":
        raise ValueError(f"times in {first['unit']} and {whole['unit']}, not in ms")
    return PeerRequest(started, started + round(first["value"] * 1e6), started + round(whole["value"] * 1e6))


def _template(task: PeerTask) -> str:
    """The body of a request, in Jinja as AIPerf reads it."""
    images = '"image_bytes": {{ images|tojson }}, ' if any(question.images for question in task.questions) else ""
    lengths = f'"max_tokens": {task.max_tokens}, "min_tokens": {task.max_tokens}'
    return f'{{"text_input": {{{{ text|tojson }}}}, {images}{lengths}, "stream": true}}\n'


def _inputs(task: PeerTask) -> list[dict[str, str]]:
    """The requests, images as files."""
    lines = []
    for number, question in enumerate(task.questions):
        line = {"text": question.text}
        for data in question.images:
            path = task.scratch / f"image-{number}.jpg"
            path.write_bytes(data)
            line["image"] = str(path)
        lines.append(line)
    return lines


def _tokenizer(task: PeerTask) -> Path:
    """A tokenizer folder as transformers reads it."""
    if task.tokenizer is None:
        raise ServerError("AIPerf needs the engine's tokenizer", fix="give the engine directory in place of the URL")
    folder = task.scratch / "tokenizer"
    folder.mkdir()
    settings = json.loads((task.tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((task.tokenizer / "vocab.json").read_text(encoding="utf-8"))
    merges = read_merges((task.tokenizer / "merges.txt").read_text(encoding="utf-8"))
    added = {int(index): token for index, token in settings["added_tokens_decoder"].items()}
    build_bpe(vocabulary, merges, added).save(str(folder / "tokenizer.json"))
    shutil.copy(task.tokenizer / "tokenizer_config.json", folder)
    return folder
