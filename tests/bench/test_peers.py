"""Load tools of others: what they are told, and what is read from what they leave."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nvlm_trt.bench.peers import RUN, aiperf, perf_analyzer
from nvlm_trt.bench.peers.tool import PeerTask, ToolName, run_tool
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import ServerError

from .engines import on_path

QUESTIONS = (Question("What is this?", (b"\xff\xd8 one",)), Question("And this?", (b"\xff\xd8 two",)))
SECOND = 10**9

EXPECTED = {
    "ttft": (500.0, 700.0),
    "itl": (100.0, 100.0),
    "latency": (1500.0, 1700.0),
    "tokens_per_s": (22 / 3.2,),
    "images_per_s": (2 / 3.2,),
}
"""Answers of 11 tokens that begin after 0.5 s and 0.7 s and end a second later, of requests that start 1.5 s apart."""


def check(found: dict[str, tuple[float, ...]]) -> None:
    assert set(found) == set(EXPECTED)
    for name, samples in EXPECTED.items():
        assert found[name] == pytest.approx(samples), name


@pytest.fixture
def task(small_engine: Path, tmp_path: Path) -> PeerTask:
    return PeerTask(
        url="127.0.0.1:8001",
        questions=QUESTIONS,
        concurrency=2,
        max_tokens=11,
        tokenizer=small_engine / "tokenizer",
        scratch=tmp_path,
    )


def export(*requests: dict[str, Any]) -> bytes:
    """A profile export as perf_analyzer 2.51 writes it: an image's bytes stand in it as they are."""
    text = json.dumps({"experiments": [{"experiment": {}, "requests": requests}], "version": ""}, ensure_ascii=False)
    return text.replace("@", "\xff\xd8\x01").encode("latin-1")


def profiled(start: float, *responses: float) -> dict[str, Any]:
    times = [int(moment * SECOND) for moment in responses]
    return {"timestamp": int(start * SECOND), "request_inputs": {"image_bytes": "@"}, "response_timestamps": times}


def test_the_times_of_perf_analyzer_become_our_metrics(task: PeerTask) -> None:
    found = perf_analyzer.as_measured(export(profiled(1, 1.5, 1.9, 2.5), profiled(2.5, 3.2, 4.2)), task)
    check(found)


def aiperf_record(start: float, ttft_ms: float, whole_ms: float) -> dict[str, Any]:
    return {
        "metadata": {"request_start_ns": int(start * SECOND)},
        "metrics": {
            "time_to_first_token": {"value": ttft_ms, "unit": "ms"},
            "request_latency": {"value": whole_ms, "unit": "ms"},
        },
    }


def test_the_records_of_aiperf_become_our_metrics(task: PeerTask) -> None:
    records = [aiperf_record(1, 500.0, 1500.0), aiperf_record(2.5, 700.0, 1700.0)]
    found = aiperf.as_measured(("\n".join(map(json.dumps, records)) + "\n").encode(), task)
    check(found)


@pytest.mark.parametrize("left", [b"", b"{}", b'{"experiments": [{"requests": [{"timestamp": 1}]}]}'])
def test_another_export_than_expected_is_a_fault_that_names_the_tool(left: bytes, task: PeerTask) -> None:
    with pytest.raises(ServerError, match="perf_analyzer left another export"):
        perf_analyzer.as_measured(left, task)
    with pytest.raises(ServerError, match="AIPerf left other records"):
        aiperf.as_measured(left or b"{", task)


def test_a_tool_that_asked_another_number_of_requests_is_not_believed(task: PeerTask) -> None:
    with pytest.raises(ServerError, match="another number of requests; seen: 1; expected: 2"):
        perf_analyzer.as_measured(export(profiled(1, 1.5, 2.5)), task)


def test_times_in_another_unit_are_not_taken_for_milliseconds(task: PeerTask) -> None:
    record = aiperf_record(1, 500.0, 1500.0)
    record["metrics"]["request_latency"]["unit"] = "sec"
    with pytest.raises(ServerError, match=r"other records than expected .*times in ms and sec"):
        aiperf.as_measured(json.dumps(record).encode(), task)


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 1, 3), (1, 3, 2)])
def test_requests_that_took_no_time_are_not_believed(times: tuple[float, float, float], task: PeerTask) -> None:
    with pytest.raises(ServerError, match="end before they begin, or at once"):
        perf_analyzer.as_measured(export(profiled(*times), profiled(*times)), task)


def test_perf_analyzer_is_asked_for_the_same_requests(
    task: PeerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer.json"
    answer.write_bytes(export(profiled(1, 1.5, 2.5), profiled(2.5, 3.2, 4.2)))
    script = f'echo "$@" > words.txt\ncp {answer} profile.json'
    on_path(tmp_path, "perf_analyzer", script, monkeypatch)
    check(RUN["perf_analyzer"](task))
    words = (tmp_path / "words.txt").read_text()
    for flags in ("-m nvlm -i grpc -u 127.0.0.1:8001", "--async --streaming", "--concurrency-range 2:2"):
        assert flags in words
    assert "--request-count 2" in words
    first = json.loads((tmp_path / "input.json").read_text())["data"][0]
    image = QUESTIONS[0].images[0]
    assert base64.b64decode(first["image_bytes"]["b64"]) == struct.pack("<I", len(image)) + image
    assert (first["max_tokens"], first["min_tokens"], first["stream"]) == ([11], [11], [True])


def test_aiperf_is_asked_for_the_same_requests_and_gets_the_tokenizer(
    task: PeerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "records.jsonl"
    written = [aiperf_record(1, 500.0, 1500.0), aiperf_record(2.5, 700.0, 1700.0)]
    records.write_text("\n".join(map(json.dumps, written)))
    script = f"""echo "$@" > words.txt; echo "$HF_HUB_OFFLINE" > offline.txt
        mkdir out; cp {records} out/profile_export.jsonl"""
    on_path(tmp_path, "aiperf", script, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check(RUN["aiperf"](task))
    words = (tmp_path / "words.txt").read_text()
    assert "--endpoint-type template --endpoint /v2/models/nvlm/generate_stream --streaming" in words
    assert "--concurrency 2 --request-count 2" in words
    assert (tmp_path / "offline.txt").read_text() == "\n"
    lines = [json.loads(line) for line in (tmp_path / "inputs.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [question.text for question in QUESTIONS]
    assert [Path(line["image"]).read_bytes() for line in lines] == [question.images[0] for question in QUESTIONS]
    body = (tmp_path / "body.json").read_text()
    assert '"max_tokens": 11, "min_tokens": 11' in body
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert ours.decode(ours.encode("What is this?").ids) == "What is this?"


def test_a_text_needs_no_image_field(task: PeerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = replace(task, questions=(Question("Why?", ()),))
    on_path(tmp_path, "aiperf", "exit 1", monkeypatch)
    with pytest.raises(ServerError, match="aiperf ended with code 1"):
        RUN["aiperf"](text)
    assert "image_bytes" not in (tmp_path / "body.json").read_text()
    found = perf_analyzer.as_measured(export(profiled(1, 1.5, 2.5)), text)
    assert "images_per_s" not in found


@pytest.mark.parametrize(
    ("tool", "lacks"),
    [("perf_analyzer", r"perf_analyzer left no profile\.json"), ("aiperf", r"AIPerf left no profile_export\.jsonl")],
)
def test_a_tool_that_ends_well_and_leaves_nothing_has_failed(
    tool: ToolName, lacks: str, task: PeerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path, tool, "exit 0", monkeypatch)
    with pytest.raises(ServerError, match=lacks):
        RUN[tool](task)


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="sh ended with code 3; seen: no such model"):
        run_tool(["sh", "-c", "echo no such model; exit 3"], tmp_path)
    with pytest.raises(ServerError, match="nothing-here cannot be run"):
        run_tool(["nothing-here"], tmp_path)
