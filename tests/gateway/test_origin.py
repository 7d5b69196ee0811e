"""Pages of other sites may not ask a server without API keys; its own page and programs may."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from nvlm_trt.gateway.settings import Limits

from .door import Door
from .upstream import Upstream

GENERATE = "/v2/models/nvlm/generate"
KEY = "a-key-of-this-test-alone"
ASKED = b'{"text_input": "Hi"}'
ANSWERED = 202  # as the stand-in of tritonserver does
CROSS = {"Sec-Fetch-Site": "cross-site"}

FOREIGN = [
    CROSS,
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "http://127.0.0.1.elsewhere.example"},
    {"Origin": "null"},  # a sandboxed frame, a file
    {"Origin": "http://[", "Host": "["},
    {"Origin": "https://api.example", "Host": "127.0.0.1"},
]
OWN = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://api.example"},  # a proxy that says another Host
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
    {"Sec-Fetch-Site": "none"},  # typed by the user
    {"Origin": "http://127.0.0.1:8000"},
    {"Origin": "https://API.example:8443", "Host": "api.example"},  # a proxy that leaves the port out
    {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
]


@pytest.fixture
def door(upstream: Upstream) -> Iterator[Door]:
    with Door(Limits(body_time=20.0), http=upstream.port) as one:
        yield one


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_is_refused(door: Door, headers: dict[str, str]) -> None:
    answer = door.call(GENERATE, ASKED, headers=headers)
    assert answer.status == 403
    assert "pages of other sites" in json.loads(answer.data)["error"]


@pytest.mark.parametrize("headers", OWN)
def test_the_servers_own_page_and_programs_are_answered(door: Door, headers: dict[str, str]) -> None:
    assert door.call(GENERATE, ASKED, headers=headers).status == ANSWERED


def test_the_refusal_has_openais_form_and_needs_no_body(door: Door) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 100\r\n\r\n{"
    )
    began = time.monotonic()
    with door.connect() as connection:
        connection.sendall(head)  # and never the rest
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert time.monotonic() - began < 15  # the body has 20 s to come
    assert answer.startswith(b"HTTP/1.1 403 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "cross_site_request")


def test_nothing_is_looked_at_for_a_page_of_another_site(door: Door) -> None:
    for path in ("/v1/models", "/health/deep", "/v2/models/nvlm"):  # an image's address is enough for a GET
        assert door.call(path, headers=CROSS).status == 403


def test_what_is_open_stays_open(door: Door) -> None:
    for path in ("/", "/page/main.js", "/health/live", "/health/ready", "/metrics"):
        assert door.call(path, headers=CROSS).status == 200


def test_with_keys_the_key_decides(upstream: Upstream) -> None:
    with Door(Limits(), http=upstream.port, api_keys=(KEY,)) as door:
        assert door.call(GENERATE, ASKED, headers=CROSS).status == 401
        assert door.call(GENERATE, ASKED, headers={**CROSS, "Authorization": f"Bearer {KEY}"}).status == ANSWERED
