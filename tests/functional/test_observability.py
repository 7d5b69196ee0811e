"""What an operator sees of a real server: one trace a request, lines of the log, and none of what people wrote."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.logs import Formatter
from nvlm_trt.recipe import BuildRecipe

from ..collector import Collector, Received

PARENT = "b7ad6b7169203331"
KEY = "a-key-that-nobody-may-read-0815"
MARKER = "Xylophon-Quastenflosser"


class Traced:
    """A server whose spans and log are read."""

    def __init__(self, server: TritonServer, collector: Collector, log: Path) -> None:
        self.server, self.collector, self._log = server, collector, log

    @property
    def words(self) -> str:
        """All that was written: by the gateway, by the models and tritonserver."""
        return self._log.read_text() + self.server.process.log.read_text()

    def lines(self, request_id: str, event: str) -> list[dict]:
        """Events of a request, once there is one."""
        deadline = time.monotonic() + 10
        while True:
            events = [json.loads(line) for line in self.words.splitlines() if line.startswith("{")]
            found = [one for one in events if one.get("request_id") == request_id and one["event"] == event]
            if found:
                return found
            assert time.monotonic() < deadline, f"no {event} of {request_id}"
            time.sleep(0.05)

    def post(self, path: str, body: object, request_id: str, trace: str, *, key: str = KEY) -> tuple[int, bytes]:
        connection, response = self.begin(path, body, request_id, trace, key=key)
        with response:
            answer = response.status, response.read()
        connection.close()
        return answer

    def begin(
        self, path: str, body: object, request_id: str, trace: str, *, key: str = KEY
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {key}",
            "X-Request-ID": request_id,
            "traceparent": f"00-{trace}-{PARENT}-01",
        }
        connection = http.client.HTTPConnection(self.server.http_url, timeout=30)
        connection.request("POST", path, json.dumps(body), headers)
        return connection, connection.getresponse()


@contextlib.contextmanager
def log_to(file: Path) -> Iterator[None]:
    """All that this process logs, at every level, as JSON."""
    handler, root = logging.FileHandler(file), logging.getLogger()
    handler.setFormatter(Formatter("json"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(handler)
    root.setLevel(before)
    handler.close()


@pytest.fixture(scope="module")
def traced(engine_dir: Path, recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    log = tmp_path_factory.mktemp("log") / "gateway.log"
    settings = GatewaySettings(Limits.of(recipe), api_keys=(KEY,))
    with pytest.MonkeyPatch.context() as patch, Collector() as collector:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("NVLM_TRT_LOG_FORMAT", "json")
        patch.setenv("NVLM_TRT_LOG_LEVEL", "debug")
        with log_to(log), TritonServer(engine_dir, ports=Ports(0, 0, 0), gateway=settings) as server:
            yield Traced(server, collector, log)


def trace_of(number: int) -> str:
    return f"{number:032x}"


def chat(picture: bytes, **more: object) -> dict[str, object]:
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": MARKER}]
    return {"model": "nvlm", "messages": [{"role": "user", "content": parts}], "ignore_eos": True, **more}


def by_name(spans: list[Received]) -> dict[str, Received]:
    assert len({span.name for span in spans}) == len(spans), "each stage is there once"
    return {span.name: span for span in spans}


CHAT = "POST chat"
STAGES = {"images", "admission", "nvlm", "preprocessing", "vision", "queue", "prefill", "decode", "stream", CHAT}


def test_a_request_is_one_trace_from_the_client_to_the_last_token(traced: Traced, jpeg: Callable[[str], bytes]) -> None:
    body = chat(jpeg("coffee"), max_tokens=20, stream=True)
    status, _ = traced.post("/v1/chat/completions", body, "first", trace_of(1))
    assert status == 200
    spans = by_name(traced.collector.trace(trace_of(1), STAGES))
    parents = {name: span.parent for name, span in spans.items()}
    gateway, nvlm = spans[CHAT].id, spans["nvlm"].id
    assert parents[CHAT] == PARENT
    assert {parents[name] for name in ("images", "admission", "nvlm", "stream")} == {gateway}
    assert {parents[name] for name in ("preprocessing", "vision", "queue", "prefill", "decode")} == {nvlm}
    processes = {name: span.process for name, span in spans.items()}
    assert (processes[CHAT], processes["nvlm"]) == ("gateway", "nvlm")
    assert (processes["vision"], processes["prefill"]) == ("vision_encoder", "tensorrt_llm")
    facts = {name: span.facts for name, span in spans.items()}
    assert facts[CHAT]["nvlm.request_id"] == "first"
    assert facts[CHAT]["http.response.status_code"] == 200
    assert facts[CHAT]["nvlm.answer_tokens"] == facts["decode"]["nvlm.answer_tokens"] == 20
    assert facts[CHAT]["nvlm.prompt_tokens"] == facts["prefill"]["nvlm.prompt_tokens"]
    assert facts["preprocessing"]["nvlm.tiles"] == facts["vision"]["nvlm.tiles"] == 7
    assert not any(span.failed for span in spans.values())


def test_the_stages_follow_each_other_and_fill_the_request(traced: Traced, jpeg: Callable[[str], bytes]) -> None:
    traced.post("/v1/chat/completions", chat(jpeg("rocket"), max_tokens=60), "whole", trace_of(2))
    spans = by_name(traced.collector.trace(trace_of(2), STAGES - {"stream"}))
    stages = [spans[name] for name in ("preprocessing", "vision", "queue", "prefill", "decode")]
    for before, after in itertools.pairwise(stages):
        assert before.ended <= after.began + 0.001, f"{after.name} begins before {before.name} ends"
    nvlm, whole = spans["nvlm"], spans[CHAT]
    assert whole.began <= nvlm.began <= nvlm.ended <= whole.ended
    assert nvlm.began <= stages[0].began
    assert stages[-1].ended <= nvlm.ended
    assert sum(stage.seconds for stage in stages) <= nvlm.seconds
    assert sum(stage.seconds for stage in stages) > nvlm.seconds / 2


def test_what_caches_spared_is_in_the_trace(traced: Traced, jpeg: Callable[[str], bytes]) -> None:
    for number in (3, 4):
        traced.post("/v1/chat/completions", chat(jpeg("chelsea"), max_tokens=2), "again", trace_of(number))
    fresh, known = (by_name(traced.collector.trace(trace_of(number), STAGES - {"stream"})) for number in (3, 4))
    assert fresh["vision"].facts["nvlm.tiles_cached"] == 0
    assert known["vision"].facts["nvlm.tiles_cached"] == known["vision"].facts["nvlm.tiles"]
    assert known["prefill"].facts["nvlm.cached_tokens"] > fresh["prefill"].facts["nvlm.cached_tokens"]


def test_a_generate_call_is_traced_too(traced: Traced) -> None:
    body = {"text_input": MARKER, "max_tokens": 3}
    assert traced.post("/v2/models/nvlm/generate", body, "kserve", trace_of(5))[0] == 200
    spans = by_name(traced.collector.trace(trace_of(5), {"POST generate", "nvlm", "decode"}))
    assert spans["nvlm"].parent == spans["POST generate"].id
    assert traced.lines("kserve", "answered")[0]["answer_tokens"] <= 3


def test_a_refusal_is_a_failed_span_with_its_reason(traced: Traced, jpeg: Callable[[str], bytes]) -> None:
    """Once by the gateway, which looks at headers, once by what decodes the image."""
    status, told = traced.post("/v1/chat/completions", chat(b"no picture"), "refused", trace_of(6))
    assert status == 400
    spans = by_name(traced.collector.trace(trace_of(6), {CHAT}))
    assert (spans[CHAT].failed, spans[CHAT].error) == (True, json.loads(told)["error"]["code"])
    broken = base64.b64encode(jpeg("coffee")[:-9000]).decode()
    body = {"text_input": MARKER, "image_bytes": [broken]}
    status, _ = traced.post("/v2/models/nvlm/generate", body, "refused-too", trace_of(66))
    assert status == 400
    spans = by_name(traced.collector.trace(trace_of(66), {"POST generate", "nvlm", "preprocessing"}))
    assert (spans["POST generate"].failed, spans["POST generate"].error) == (True, "status_400")
    assert {spans[name].error for name in ("nvlm", "preprocessing")} == {"ImageRejected"}
    (line,) = traced.lines("refused-too", "not answered")
    assert line["error"] == "ImageRejected"


def test_a_client_that_hangs_up_is_marked_in_its_trace_and_in_the_log(traced: Traced) -> None:
    body = {"model": "nvlm", "prompt": MARKER, "max_tokens": 400, "ignore_eos": True, "stream": True}
    connection, response = traced.begin("/v1/completions", body, "gone", trace_of(7))
    response.read(10)
    response.close()
    connection.close()
    spans = by_name(traced.collector.trace(trace_of(7), {"POST completions", "nvlm", "decode", "stream"}))
    assert {spans[name].error for name in ("POST completions", "nvlm", "stream")} == {"cancelled"}
    assert spans["decode"].facts["nvlm.finish_reason"] == "cancelled"
    assert spans["decode"].facts["nvlm.answer_tokens"] < 400
    (line,) = traced.lines("gone", "request")
    assert line["error"] == "cancelled"


def test_an_unsampled_request_makes_no_span(traced: Traced) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "traceparent": f"00-{trace_of(8)}-{PARENT}-00"}
    connection = http.client.HTTPConnection(traced.server.http_url, timeout=30)
    connection.request(
        "POST", "/v1/completions", json.dumps({"model": "nvlm", "prompt": "x", "max_tokens": 1}), headers
    )
    assert connection.getresponse().read()
    connection.close()
    traced.post("/v1/completions", {"model": "nvlm", "prompt": "x", "max_tokens": 1}, "next", trace_of(9))
    traced.collector.trace(trace_of(9), {"POST completions", "decode"})
    assert not [span for span in traced.collector.spans if span.trace == trace_of(8)]


def test_the_access_line_says_what_a_request_took(traced: Traced, jpeg: Callable[[str], bytes]) -> None:
    traced.post("/v1/chat/completions", chat(jpeg("coffee"), max_tokens=5, stream=True), "line", trace_of(10))
    (line,) = traced.lines("line", "request")
    assert (line["level"], line["route"], line["method"], line["status"]) == ("info", "chat", "POST", 200)
    assert line["key"] == hashlib.sha256(KEY.encode()).hexdigest()[:8]
    assert (line["images"], line["answer_tokens"], line["finish_reason"]) == (1, 5, "length")
    assert 0 <= line["queue_seconds"] <= line["first_text_seconds"] <= line["seconds"]
    (model,) = traced.lines("line", "answered")
    assert (model["tiles"], model["prompt_tokens"]) == (7, line["prompt_tokens"])


def test_nothing_that_people_wrote_or_showed_is_in_a_log_or_a_span(
    traced: Traced, jpeg: Callable[[str], bytes]
) -> None:
    """Answers, refusals at each place, broken bodies, a wrong key: all with the same words and picture."""
    picture = jpeg("coffee")
    broken = picture[:-9000]
    bad = {**chat(picture), MARKER: MARKER}
    message = [{"role": MARKER, "content": MARKER}]
    asks: list[tuple[str, object]] = [
        ("/v1/chat/completions", chat(picture, max_tokens=3)),
        ("/v1/chat/completions", chat(broken)),
        ("/v1/chat/completions", bad),
        ("/v1/chat/completions", {"model": "nvlm", "messages": message}),
        ("/v1/chat/completions", {"model": MARKER, "messages": [{"role": "user", "content": MARKER}]}),
        ("/v1/completions", {"model": "nvlm", "prompt": MARKER * 2000}),
        ("/v1/completions", {"model": "nvlm", "prompt": MARKER, "stop": MARKER, "max_tokens": 2}),
        ("/v1/completions", MARKER),
        ("/v2/models/nvlm/generate", {"text_input": MARKER, MARKER: 1}),
        ("/v2/models/nvlm/generate", {"messages": json.dumps(message)}),
        ("/v2/models/nvlm/generate", {"text_input": MARKER, "image_bytes": [base64.b64encode(broken).decode()]}),
        ("/v2/models/ensemble/generate", {"text_input": MARKER * 2000}),
        ("/v2/models/ensemble/infer", {"inputs": [{"name": MARKER, "data": [MARKER]}]}),
        (f"/v2/models/{MARKER}/generate", {"text_input": MARKER}),
        (f"/{MARKER}?{MARKER}", {}),
    ]
    for place, (path, body) in enumerate(asks):
        status, _ = traced.post(path, body, f"marked-{place}", trace_of(100 + place))
        assert (status == 200) == (place in (0, 6))
        traced.lines(f"marked-{place}", "request")
    wrong = f"a-wrong-key-{MARKER}"
    assert traced.post("/v1/completions", {}, "wrong", trace_of(99), key=wrong)[0] == 401
    traced.lines("wrong", "request")
    time.sleep(0.5)
    seen = traced.words.encode() + b"".join(traced.collector.bodies)
    assert all(b"marked-%d" % place in seen for place in range(len(asks))), "the test looks in the right place"
    encoded = base64.b64encode(picture)
    for secret in (MARKER, KEY, MARKER.encode().hex()):
        assert secret.encode() not in seen
    for piece in (picture[200:216], encoded[200:232], encoded[-64:-32]):
        assert piece not in seen
