"""Bodies that are too large, packed, in crumbs, no form, no JSON (faults 1 to 5)."""

from __future__ import annotations

import functools
import gzip
import json
import math
from collections.abc import Callable

import pytest

from .conftest import LIMITS, FaultRecord, Watch
from .served import Served
from .wire import CHAT, GENERATE, Reply, ask, assert_clear, chat, head, say

MAX_BODY = LIMITS["max_body"]
Begin = Callable[[], Watch]


@pytest.mark.fault(case=1)
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_body_over_the_limit_is_refused_by_its_length(
    served: Served, watch: Begin, fault_record: FaultRecord, path: str
) -> None:
    began = watch()
    piece = bytes(1 << 20)
    answer = say(served.http, [head(path, f"Content-Length: {1 << 30}"), *[piece] * 64])
    growth, seen = began.end()
    assert answer.status == 413
    assert_clear(answer.sentence)
    assert answer.ms < 10_000
    assert growth < 30
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=path)


@pytest.mark.fault(case=2)
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_body_in_hundreds_of_thousands_of_chunks_is_refused(
    served: Served, watch: Begin, fault_record: FaultRecord, path: str
) -> None:
    began, cpu = watch(), cpu_seconds(served)
    answer = say(served.http, [head(path, "Transfer-Encoding: chunked"), *[b"1\r\nx\r\n" * 10_000] * 60])
    spent = cpu_seconds(served) - cpu
    growth, seen = began.end()
    assert answer.status in (400, 413)
    assert_clear(answer.sentence)
    assert spent < 2  # what the one who behaves costs is in it
    assert growth < 30
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=path)


def cpu_seconds(served: Served) -> float:
    """Of the gateway's process."""
    times = served.gateway.cpu_times()
    return float(times.user + times.system)


@functools.cache
def bomb() -> bytes:
    """150 MB in 150 kB."""
    packed = gzip.compress(b'{"model": "nvlm", "prompt": "' + b"x" * 150_000_000 + b'"}', 6)
    assert len(packed) < 160_000
    return packed


@pytest.mark.fault(case=3)
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_small_body_that_unpacks_to_a_large_one_is_refused(
    served: Served, watch: Begin, fault_record: FaultRecord, path: str
) -> None:
    packed = bomb()
    began = watch()
    answer = ask(served.http, path, packed, {"Content-Encoding": "gzip"})
    growth, seen = began.end()
    assert answer.status == 413
    assert_clear(answer.sentence)
    assert growth < 2 * MAX_BODY / 2**20 + 10
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=path)


@pytest.mark.fault(case=4)
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_megabytes_that_are_called_a_form_or_nothing_are_read_as_json(
    served: Served, watch: Begin, fault_record: FaultRecord, path: str, kind: str | None
) -> None:
    """As ``curl -d`` sends them: the same 6 MB end a tritonserver 2.51 that meets them itself."""
    body = chat("x" * 6_000_000) if path == CHAT else {"text_input": "x" * 6_000_000}
    began = watch()
    answer = ask(served.http, path, body, {"Content-Type": kind} if kind else {})
    growth, seen = began.end()
    assert answer.status == 400
    assert "at most 4194304" in answer.sentence
    assert_clear(answer.sentence)
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=f"{path}, {kind}")


HELLO = [{"role": "user", "content": "Hello"}]
MISTAKES: dict[str, tuple[str, bytes, str]] = {
    "half of an object": (CHAT, b'{"model": "nvlm", "messa', "JSON"),
    "no JSON": (CHAT, b"a=b&c=d", "JSON"),
    "not UTF-8": (CHAT, b'{"model": "\xff\xfe"}', "JSON"),
    "nothing": (CHAT, b"", "Missing required parameter"),
    "a list": (CHAT, b"[]", "body"),
    "nested 100,000 deep": (CHAT, b"[" * 100_000, "JSON"),
    "no messages": (CHAT, b'{"model": "nvlm"}', "messages"),
    "messages are a text": (CHAT, json.dumps({"model": "nvlm", "messages": "Hello"}).encode(), "messages"),
    "max_tokens is a text": (
        CHAT,
        json.dumps({"model": "nvlm", "messages": HELLO, "max_tokens": "x"}).encode(),
        "max_tokens",
    ),
    "NaN": (CHAT, json.dumps({"model": "nvlm", "messages": HELLO, "temperature": math.nan}).encode(), "temperature"),
    "infinite": (CHAT, json.dumps({"model": "nvlm", "messages": HELLO, "top_p": math.inf}).encode(), "top_p"),
    "a number of 5,000 digits": (
        CHAT,
        b'{"model": "nvlm", "messages": [{"role": "user", "content": "x"}], "seed": %s}' % (b"9" * 5000),
        "",
    ),
    "an unknown field": (CHAT, json.dumps({"model": "nvlm", "messages": HELLO, "max_token": 5}).encode(), "max_token"),
    "half a surrogate pair": (
        CHAT,
        b'{"model": "nvlm", "messages": [{"role": "user", "content": "\\ud800"}]}',
        "",
    ),
    "generate: half of an object": (GENERATE, b'{"text', "JSON"),
    "generate: no question": (GENERATE, b'{"max_tokens": 4}', "text_input"),
    "generate: a number for a text": (GENERATE, b'{"text_input": 5}', "text_input"),
    "generate: NaN": (GENERATE, b'{"text_input": "x", "temperature": NaN}', "temperature"),
    "generate: beyond 32 bits": (GENERATE, b'{"text_input": "x", "max_tokens": 99999999999}', "max_tokens"),
    "generate: a field twice": (GENERATE, b'{"text_input": 5, "text_input": "x"}', "twice"),
    "generate: UTF-16": (GENERATE, json.dumps({"text_input": "x"}).encode("utf-16"), "UTF-8"),
    "generate: half a surrogate pair": (GENERATE, b'{"text_input": "\\ud800"}', ""),
}


@pytest.mark.fault(case=5)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_json_is_named(served: Served, fault_record: FaultRecord, name: str) -> None:
    path, body, word = MISTAKES[name]
    answer = ask(served.http, path, body)
    assert_refused(answer, path)
    assert word in answer.sentence
    fault_record(time_ms=answer.ms, variant=name)


def assert_refused(answer: Reply, path: str) -> None:
    assert answer.status == 400, answer.body[:300]
    assert_clear(answer.sentence)
    if path.startswith("/v1"):
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["code"]


MILLIONS: dict[str, tuple[str, bytes]] = {
    "chat: 3 million objects": (CHAT, b'{"messages": [' + b"{}," * 3_000_000 + b"1]}"),
    "chat: a million parts": (
        CHAT,
        b'{"model":"nvlm","messages":[{"role":"user","content":['
        + b'{"type":"text","text":"x"},' * 500_000
        + b'{"type":"text","text":"x"}]}]}',
    ),
    "chat: 3 million stops": (CHAT, b'{"stop": [' + b'"x",' * 3_000_000 + b"1]}"),
    "generate: a million fields": (GENERATE, b"{" + b",".join(b'"f%d":1' % n for n in range(1_000_000)) + b"}"),
}


@pytest.mark.fault(case=5)
@pytest.mark.parametrize("name", MILLIONS)
def test_a_body_of_millions_of_members_is_refused_before_they_are_made(
    served: Served, watch: Begin, fault_record: FaultRecord, name: str
) -> None:
    """Each would be an object of dozens of bytes, and hold the event loop for seconds while it is made."""
    path, body = MILLIONS[name]
    began = watch()
    answer = ask(served.http, path, body)
    growth, seen = began.end()
    assert answer.status == 400
    assert "too many members" in answer.sentence
    assert growth < 4 * len(body) / 2**20 + 20
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=name)


@pytest.mark.fault(case=5)
def test_a_hundred_mistakes_disturb_nobody(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    began = watch()
    for _ in range(100 // len(MISTAKES)):
        for path, body, _ in MISTAKES.values():
            assert ask(served.http, path, body).status == 400
    growth, seen = began.end()
    assert growth < 30
    fault_record(memory_mb=growth, others=seen, variant="a hundred of them")
