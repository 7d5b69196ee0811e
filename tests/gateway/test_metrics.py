"""What the gateway counts, and what it says of the processes behind it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.metrics import Metrics, route_of
from nvlm_trt.gateway.settings import Limits

from .door import Door
from .upstream import Upstream

STREAM = "/v2/models/nvlm/generate_stream"


async def shown(processes: dict[str, int], restarts: dict[str, int]) -> dict[tuple[str, str], float]:
    """Samples by name and the values of their labels, with commas between."""
    metrics = Metrics(Admission(Limits()), lambda: True, lambda: restarts, lambda: processes, "mini")
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, ",".join(one.labels.values())): one.value for one in samples}


def run(processes: dict[str, int], restarts: dict[str, int]) -> dict[tuple[str, str], float]:
    return asyncio.run(shown(processes, restarts))


def test_processes_are_shown_as_they_are() -> None:
    seen = run({"serve": os.getpid()}, {})
    memory = seen["nvlm_process_resident_memory_bytes", "serve"]
    assert memory == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert seen["nvlm_process_threads", "serve"] >= 1
    assert seen["nvlm_process_open_fds", "serve"] >= 3
    assert seen["nvlm_process_cpu_seconds_total", "serve"] > 0


def test_a_process_that_ended_is_left_out() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    seen = run({"serve": os.getpid(), "nvlm": ended.pid}, {})
    assert ("nvlm_process_threads", "serve") in seen
    assert ("nvlm_process_threads", "nvlm") not in seen


def test_the_time_of_the_start_is_shown_for_as_long_as_it_is_the_same() -> None:
    before = time.time()
    with Door(Limits()) as door:
        began = door.metric("nvlm_start_time_seconds")
        assert before <= began <= time.time()
        assert door.metric("nvlm_start_time_seconds") == began


def test_restarts_are_counted_by_reason_from_nothing_on() -> None:
    seen = run({}, {"dead": 2, "hung": 0})
    assert seen["nvlm_server_restarts_total", "dead"] == 2
    assert seen["nvlm_server_restarts_total", "hung"] == 0


def test_what_alerts_look_at_is_there_from_the_beginning() -> None:
    seen = run({}, {})
    for name in ("nvlm_refused_total", "nvlm_broken_streams_total"):
        assert seen[name, "unavailable"] == seen[name, "overloaded"] == seen[name, "internal_error"] == 0
    assert seen["nvlm_broken_streams_total", "stream_error"] == 0
    assert seen["nvlm_deep_probes_total", "failed"] == 0
    for route in ("chat", "completions", "generate", "generate_stream", "infer", "other"):
        assert seen["nvlm_requests_total", f"{route},500"] == seen["nvlm_requests_total", f"{route},504"] == 0


def test_a_stream_that_breaks_is_counted_and_no_refusal(upstream: Upstream) -> None:
    with Door(Limits(), http=upstream.port) as door:
        door.call(STREAM, b'{"text_input": "short cut"}')
        assert door.metric('nvlm_broken_streams_total{reason="unavailable"}') == 1
        assert door.metric('nvlm_refused_total{reason="unavailable"}') == 0
        door.call(STREAM, b'{"text_input": "short leak"}')
        assert door.metric('nvlm_broken_streams_total{reason="stream_error"}') == 1


def stream_of(*events: object) -> bytes:
    return json.dumps({"text_input": "".join(f"data: {json.dumps(event)}\n\n" for event in events)}).encode()


def test_texts_of_a_stream_of_kserve_are_timed_one_by_one_and_nothing_else_is(upstream: Upstream) -> None:
    """They come as one piece here; an error, and the event that tells why the answer ended, are no texts."""
    with Door(Limits(), http=upstream.port) as door:
        door.call(STREAM, stream_of({"error": "a client's error"}))
        assert door.metric("nvlm_first_token_seconds_count") == 0
        texts = [{"text_output": text, "finish_reason": ""} for text in ("a", "b", "c")]
        door.call(STREAM, stream_of(*texts, {"text_output": "", "finish_reason": "stop"}))
        assert door.metric("nvlm_first_token_seconds_count") == 1
        assert door.metric("nvlm_inter_token_seconds_count") == 2


def test_refusals_of_the_gateway_and_of_the_server_are_counted_by_reason(upstream: Upstream) -> None:
    with Door(Limits(max_body=1000), http=upstream.port) as door:
        door.call(STREAM, b"{}" + b" " * 2000)
        door.call(STREAM, b'{"text_input": "an error"}')
        assert door.metric('nvlm_refused_total{reason="request_too_large"}') == 1
        assert door.metric('nvlm_refused_total{reason="status_400"}') == 1
        assert door.metric("nvlm_queue_seconds_count") == 1


def test_a_server_that_has_no_room_is_unavailable_whoever_says_so(upstream: Upstream) -> None:
    with Door(Limits(), http=upstream.port) as door:
        assert door.call(STREAM, b'{"text_input": "unavailable: an error for now; try again later"}').status == 503
        assert door.metric('nvlm_refused_total{reason="unavailable"}') == 1


def test_a_probe_that_is_told_that_the_server_is_not_ready_is_no_refusal(upstream: Upstream) -> None:
    with Door(Limits(), http=upstream.port) as door:
        door.ready = False
        for path in ("/health/ready", "/v2/health/ready", "/v2/models/nvlm/ready"):
            answer = door.call(path)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json() == {"error": "the server is not ready"}
        assert door.metric('nvlm_refused_total{reason="unavailable"}') == 0


def test_a_path_is_one_of_few_routes() -> None:
    assert route_of("/v1/chat/completions") == "chat"
    assert route_of("/v2/models/nvlm/versions/1/generate_stream") == "generate_stream"
    assert route_of("/metrics") == route_of("/v2/models/nvlm/ready") == "health"
    assert route_of("/a/path/of/the/client") == "other"
