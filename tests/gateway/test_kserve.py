"""KServe's API through the gateway: answers passed through, clear words while the server is away."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator

import pytest

from nvlm_trt.errors import BusyError
from nvlm_trt.gateway.settings import Limits

from .door import Door
from .upstream import Upstream

LIMIT = 10_000


@pytest.fixture
def door(upstream: Upstream) -> Iterator[Door]:
    with Door(Limits(max_body=LIMIT), http=upstream.port) as one:
        yield one


GENERATE = "/v2/models/nvlm/generate"


def test_a_request_and_its_answer_pass_unchanged(door: Door, upstream: Upstream) -> None:
    answer = door.call(
        "/v2/models/nvlm/infer?a=%20b", b"\x00\x01", headers={"Content-Type": "application/octet-stream"}
    )
    assert (answer.status, answer.data, answer.headers["X-Upstream"]) == (202, b"\x00\x01", "yes")
    method, path, body, _ = upstream.seen[0]
    assert (method, path, body) == ("POST", "/v2/models/nvlm/infer?a=%20b", b"\x00\x01")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_generate_call_reaches_the_server_as_json_whatever_it_says(door: Door, upstream: Upstream, kind: str) -> None:
    door.call(GENERATE, b'{"text_input": "a"}', headers={"Content-Type": kind} if kind else None)
    assert upstream.seen[0][3] == "application/json"


def test_a_form_never_reaches_the_server(door: Door, upstream: Upstream) -> None:
    door.call("/v2/models/nvlm/infer", b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert upstream.seen[0][3] == "application/octet-stream"


def test_a_mistake_in_a_generate_call_is_400_and_never_reaches_the_server(door: Door, upstream: Upstream) -> None:
    for path in (GENERATE, "/v2/models/nvlm/versions/1/generate", GENERATE + "_stream"):
        answer = door.call(path, b'{"max_tokens": "many"}')
        assert answer.status == 400
        assert "max_tokens is not a whole number" in answer.json()["error"]
    assert upstream.seen == []


def test_a_body_over_the_limit_is_413_by_its_length_in_chunks_and_compressed(door: Door, upstream: Upstream) -> None:
    large = b"a" * (LIMIT + 1)
    assert door.call(GENERATE, large).status == 413
    assert door.call(GENERATE, iter([large[:9000], large[9000:]])).status == 413
    packed = gzip.compress(large * 50)
    assert len(packed) < LIMIT
    assert door.call(GENERATE, packed, headers={"Content-Encoding": "gzip"}).status == 413
    assert upstream.seen == []


def test_a_compressed_body_is_unpacked(door: Door, upstream: Upstream) -> None:
    body = json.dumps({"text_input": "a"}).encode()
    headers = {"Content-Encoding": "gzip", "X-Request-ID": "mine"}
    told = door.call(GENERATE, gzip.compress(body), headers=headers).json()
    assert told == {"request_id": "mine", "cancel_id": told["cancel_id"], "text_input": "a"}


def test_the_models_are_told_the_id_that_logs_show_unless_the_client_names_one(door: Door) -> None:
    headers = {"X-Request-ID": "mine"}
    told = [door.call(GENERATE, b" {} ", headers=headers).json() for _ in range(2)]
    assert [each["request_id"] for each in told] == ["mine", "mine"]
    assert len({each["cancel_id"] for each in told}) == 2  # nobody else may end it
    own = door.call(GENERATE, b'{"request_id": "theirs", "text_input": "a"}', headers=headers).json()
    assert own["request_id"] == "theirs"
    ensemble = "/v2/models/ensemble/generate"  # it has no way to be ended
    assert door.call(ensemble, b"{}", headers=headers).json() == {"request_id": "mine"}


@pytest.mark.parametrize("body", [b'{"cancel_id": "mine"}', b'{"parameters": {"cancel\\u005fid": "mine"}}'])
def test_the_id_by_which_a_request_is_ended_is_the_gateways_to_choose(
    door: Door, upstream: Upstream, body: bytes
) -> None:
    for path in (GENERATE, GENERATE + "_stream"):
        answer = door.call(path, body)
        assert (answer.status, answer.json()["error"][:30]) == (400, "unknown field; seen: cancel_id")
    assert upstream.seen == []
    assert len(door.call(GENERATE, b'{"text_input": "\\"cancel_id\\" cancel_id"}').json()["cancel_id"]) == 32
    assert len(door.call(GENERATE, b'{"text_input": "cancel_id"}').json()["cancel_id"]) == 32


@pytest.mark.parametrize(
    ("sentence", "status"),
    [
        ("a client's error; seen: 3", 400),
        ("unavailable: an error for now; try again later", 503),
        ("internal error: the server failed on this request", 500),
        ("Request for unknown model: 'nvlm' is not found", 503),
        ("Request for unknown model: 'nvlm' has no available versions", 503),
        ("Request for unknown model: 'another' is not found", 400),
        ("in ensemble 'ensemble', internal error: a model failed", 500),
    ],
)
def test_an_error_of_a_model_gets_the_status_that_it_deserves(door: Door, sentence: str, status: int) -> None:
    for path in (GENERATE, GENERATE + "_stream"):
        answer = door.call(path, json.dumps({"text_input": sentence}).encode())
        assert (answer.status, answer.json()["error"]) == (status, sentence)


def test_a_stream_comes_as_it_is_made(door: Door) -> None:
    answer = door.call(GENERATE + "_stream", b'{"text_input": "short"}')
    assert answer.data == b"data: 1\n\ndata: 2\n\n"


def test_a_stream_that_is_lost_ends_with_an_error_event(door: Door) -> None:
    answer = door.call(GENERATE + "_stream", b'{"text_input": "short cut"}')
    assert answer.data.endswith(b'data: {"error": "the server lost this request; send it again"}\n\n')


def test_however_many_calls_are_under_way_a_probe_does_not_wait_for_one_of_them(upstream: Upstream) -> None:
    body = b'{"text_input": "long"}'
    head = b"POST %s_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (GENERATE.encode(), len(body))
    with Door(Limits(max_concurrent=200), http=upstream.port) as door, contextlib.ExitStack() as stack:
        for _ in range(120):
            stack.enter_context(door.connect()).sendall(head + body)
        while door.metric("nvlm_requests_working") < 120:
            time.sleep(0.05)
        began = time.monotonic()
        assert door.call("/v2/health/ready").status == 202  # as the server behind says
        assert time.monotonic() - began < 5


def test_a_client_that_hangs_up_ends_the_request_of_the_server(door: Door, upstream: Upstream) -> None:
    body = b'{"text_input": "long"}'
    with socket.create_connection(("127.0.0.1", door.port)) as one:
        one.sendall(
            b"POST %s_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (GENERATE.encode(), len(body), body)
        )
        assert one.recv(1)
    assert upstream.hung_up.wait(5)


def test_while_the_server_is_away_clients_are_told_to_come_back() -> None:
    with Door(Limits()) as door:
        answer = door.call(GENERATE, b'{"text_input": "a"}')
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        door.ready = False
        assert door.call("/v2/health/ready").status == 503
        assert door.call("/v2/health/live").status == 200  # it is being replaced: nobody need do more


def test_a_port_in_use_is_a_clear_error() -> None:
    with Door(Limits()) as first:
        second = Door(Limits(), port=first.port)
        with pytest.raises(BusyError, match="HTTP port"):
            second.gateway.start()
        second.gateway.stop()


@pytest.mark.parametrize("path", ["/v2/models/tensorrt_llm/infer", "/v2/models/nvlm/x", "/v2/models/nvlm/generate/"])
def test_only_the_models_for_clients_can_be_called(door: Door, upstream: Upstream, path: str) -> None:
    answer = door.call(path, b"{}")
    assert (answer.status, answer.json()) == (403, {"error": "only nvlm and ensemble can be called"})
    assert upstream.seen == []


@pytest.mark.parametrize("end", ["", "_stream"])
def test_an_error_that_says_too_much_is_made_plain(door: Door, end: str) -> None:
    leak = 'error: Traceback, File "/srv/secret.py"'
    answer = door.call(GENERATE + end, json.dumps({"text_input": leak}).encode())
    assert answer.status == 400
    assert answer.json() == {"error": "the server failed on this request; its log says why"}


def test_an_error_in_the_middle_of_a_stream_is_made_plain(door: Door) -> None:
    answer = door.call(GENERATE + "_stream", b'{"text_input": "short leak"}')
    assert b"secret" not in answer.data
    assert answer.data.endswith(b'data: {"error": "the server failed on this request; its log says why"}\n\n')
