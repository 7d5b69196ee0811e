"""Spans by themselves: who asks for them, whose children they are, what comes of what is malformed."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Iterator

import pytest

from nvlm_trt.decoder.stages import Stages
from nvlm_trt.errors import EngineError, RequestError
from nvlm_trt.serving.llm_trace import trace_decoding
from nvlm_trt.tracing import UNTRACED, Tracer, check_endpoint, stage, tracer_from_environment, word_of

from .collector import Collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_made_unless_the_environment_asks(environment: dict[str, str]) -> None:
    assert tracer_from_environment("x", environment) is None


def test_what_is_not_installed_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EngineError, match=r"OpenTelemetry is not installed.*\.\[trace\]"):
        tracer_from_environment("x", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318"})


@pytest.mark.parametrize("url", ["collector:4318", "", "ftp://a", "http://"])
def test_an_endpoint_is_a_url(url: str) -> None:
    with pytest.raises(RequestError, match="no URL"):
        check_endpoint(url)


def test_a_child_of_another_process_has_its_parent_and_its_times(collector: Collector) -> None:
    tracer = Tracer("vision_encoder")
    began = time.monotonic() - 5
    span = tracer.remote(GOOD).child("vision", began=began)
    span.note({"nvlm.tiles": 7})
    span.end(at=began + 2)
    tracer.close()
    (came,) = collector.trace(TRACE, {"vision"})
    assert (came.parent, came.process, came.facts) == (PARENT, "vision_encoder", {"nvlm.tiles": 7})
    assert came.seconds == pytest.approx(2, abs=0.01)
    assert came.began == pytest.approx(time.time() - 5, abs=2)
    assert span.traceparent == f"00-{TRACE}-{came.id}-01"


@pytest.mark.parametrize(
    "parent",
    [
        None,
        7,
        "",
        "nonsense",
        GOOD.upper(),
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}",
    ],
)
def test_a_malformed_parent_is_none(collector: Collector, parent: object) -> None:
    tracer = Tracer("x")
    assert tracer.remote(parent) is UNTRACED
    root = tracer.begin("root", parent)
    assert root.traceparent is not None
    assert TRACE not in root.traceparent
    tracer.close()


def test_who_is_not_sampled_has_no_spans(collector: Collector) -> None:
    tracer = Tracer("x")
    unsampled = f"00-{TRACE}-{PARENT}-00"
    assert tracer.remote(unsampled) is UNTRACED
    assert tracer.begin("root", unsampled) is UNTRACED
    tracer.close()
    assert not collector.spans


def test_a_stage_fails_with_its_block(collector: Collector) -> None:
    tracer = Tracer("x")
    remote = tracer.remote(GOOD)
    with pytest.raises(ValueError, match="secret"), stage(remote, "bad"):
        raise ValueError("secret")
    with pytest.raises(asyncio.CancelledError), stage(remote, "gone"):
        raise asyncio.CancelledError
    with stage(remote, "good"):
        pass
    tracer.close()
    spans = {span.name: span for span in collector.trace(TRACE, {"bad", "gone", "good"})}
    assert (spans["bad"].failed, spans["bad"].error) == (True, "ValueError")
    assert (spans["gone"].failed, spans["gone"].error) == (True, "cancelled")
    assert not spans["good"].failed
    assert b"secret" not in b"".join(collector.bodies)


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        (Stages(5, queued=1.0), ["queue"]),
        (Stages(5, queued=1.0, began=2.0), ["queue", "prefill"]),
        (Stages(5, queued=1.0, began=2.0, first=4.0), ["queue", "prefill", "decode"]),
    ],
)
def test_a_decoding_has_the_spans_of_what_it_reached(collector: Collector, stages: Stages, names: list[str]) -> None:
    tracer = Tracer("x")
    trace_decoding(tracer.remote(GOOD), stages, 3, "error", 7.0)
    tracer.close()
    spans = sorted(collector.trace(TRACE, set(names)), key=lambda span: span.began)
    assert [span.name for span in spans] == names
    assert [span.failed for span in spans] == [False] * (len(names) - 1) + [True]
    assert [round(span.seconds, 2) for span in spans[:-1]] == [1.0, 2.0][: len(names) - 1]
    assert round(spans[-1].seconds, 2) == {"queue": 6.0, "prefill": 5.0, "decode": 3.0}[names[-1]]


def test_without_a_collector_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracer = Tracer("x")
    tracer.remote(GOOD).child("stage").end()
    began = time.monotonic()
    tracer.close()
    assert time.monotonic() - began < 20


def test_a_failure_is_a_word() -> None:
    assert word_of(KeyError("x")) == "KeyError"
    assert word_of(GeneratorExit()) == "cancelled"
