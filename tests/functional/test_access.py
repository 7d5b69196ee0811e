"""What a client may not do."""

from __future__ import annotations

import urllib.request

import pytest


@pytest.mark.parametrize(
    "path",
    [
        "repository/index",
        "repository/models/nvlm/unload",
        "systemsharedmemory/region/x/register",
        "logging",
        "trace/setting",
    ],
)
def test_management_is_closed(post, path):
    answer = post(path, {})
    assert answer.status in (403, 404)
    assert "restricted" in answer.body.decode()


def test_it_listens_on_loopback_only(server):
    assert server.http_url.startswith("127.0.0.1:")
    assert server.grpc_url.startswith("127.0.0.1:")


def test_metrics_are_open(server):
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        assert b"nv_inference_request_success" in answer.read()


def test_the_log_holds_no_prompts(server, client):
    client.generate("a very private question")
    assert b"very private" not in server.process.log.read_bytes()
