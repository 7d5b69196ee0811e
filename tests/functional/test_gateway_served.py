"""The front door in front of a real server: keys, curl, hang-ups, losses, figures, and no door at all."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.recipe import BuildRecipe

from .shown import given_up

FREE = Ports(0, 0, 0)
KEY = "a-key-of-the-functional-tests"
LONG = {
    "model": "nvlm",
    "messages": [{"role": "user", "content": "Tell me"}],
    "max_tokens": 400,
    "stream": True,
    "ignore_eos": True,
}


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def begin(server: TritonServer) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A long stream whose first event was read."""
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(LONG), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    return connection, response


def test_curl_needs_no_headers(server: TritonServer) -> None:
    body = json.dumps({"model": "nvlm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8})
    url = f"http://{server.http_url}/v1/chat/completions"
    shown = subprocess.run(["curl", "-sS", "--fail", url, "-d", body], capture_output=True, check=True)
    answer = json.loads(shown.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] <= 8


def test_curl_sees_a_stream_with_its_end_mark(server: TritonServer) -> None:
    body = json.dumps(
        {"model": "nvlm", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True}
    )
    url = f"http://{server.http_url}/v1/chat/completions"
    shown = subprocess.run(["curl", "-sSN", "--fail", url, "-d", body], capture_output=True, check=True)
    *events, end = shown.stdout.decode().removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    reasons = [json.loads(event.removeprefix("data: "))["choices"][0]["finish_reason"] for event in events]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}


def test_megabytes_that_curl_calls_a_form_harm_nobody(server: TritonServer, tmp_path: Path) -> None:
    """The same bytes end a tritonserver 2.51 that meets them itself."""
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"text_input": "x" * 6_000_000, "max_tokens": 1}))
    refusals = {"/v2/models/nvlm/generate": "400", "/v2/models/nvlm/infer": "501", "/v1/completions": "400"}
    for path, status in refusals.items():
        command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{server.http_url}{path}"]
        shown = subprocess.run([*command, "-d", f"@{file}"], capture_output=True, check=True)
        assert shown.stdout.decode() == status
    assert server.is_ready


def test_a_client_that_hangs_up_ends_the_decoding(server: TritonServer) -> None:
    with given_up(server, 2 * 400):
        for _ in range(2):
            connection, response = begin(server)
            response.close()
            connection.close()


def test_a_client_of_a_whole_answer_that_hangs_up_ends_the_decoding_too(server: TritonServer) -> None:
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    with given_up(server, 400):
        connection.request("POST", "/v1/chat/completions", json.dumps({**LONG, "stream": False}))
        wait_working(server)
        connection.close()


def test_a_client_of_a_whole_answer_in_kserves_form_that_hangs_up_ends_the_decoding_too(server: TritonServer) -> None:
    """Tritonserver tells its models nothing of such a client."""
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    body = json.dumps({"text_input": "Tell me", "max_tokens": 400, "min_tokens": 400})
    with given_up(server, 400):
        connection.request("POST", "/v2/models/nvlm/generate", body)
        wait_working(server)
        connection.close()


def wait_working(server: TritonServer) -> None:
    """Wait until the gateway has a request in work."""
    deadline = time.monotonic() + 60
    while "nvlm_requests_working 1.0" not in get(server.http_url, "/metrics")[1]:
        assert time.monotonic() < deadline, "it was never seen at work"


def test_health_has_three_levels(server: TritonServer) -> None:
    assert get(server.http_url, "/health/live")[0] == 200
    assert get(server.http_url, "/health/ready") == (200, '{"status":"ready"}')
    assert get(server.http_url, "/health/deep") == (200, '{"status":"answers"}')


def test_metrics_of_the_gateway_and_of_triton_are_one_page(server: TritonServer) -> None:
    with openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none") as ask:
        list(ask.completions.create(model="nvlm", prompt="Hello", max_tokens=3, stream=True))
    page = get(server.http_url, "/metrics")[1]
    for name in (
        'nvlm_requests_total{route="completions",status="200"}',
        "nvlm_first_token_seconds_count",
        "nvlm_inter_token_seconds_count",
        'nvlm_tokens_total{kind="answer"}',
        "nvlm_server_ready 1.0",
        'nv_inference_request_success{model="nvlm"',
    ):
        assert name in page
    names = [family.name for family in text_string_to_metric_families(page)]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def guarded(engine_dir: Path, recipe: BuildRecipe) -> Iterator[TritonServer]:
    """A server that asks for a key, and may be hurt."""
    settings = GatewaySettings(Limits.of(recipe), api_keys=(KEY,))
    with TritonServer(engine_dir, host="0.0.0.0", ports=FREE, gateway=settings) as running:
        yield running


def test_a_key_opens_the_door(guarded: TritonServer) -> None:
    url = f"http://127.0.0.1:{guarded.ports.http}/v1"
    asked = {"model": "nvlm", "prompt": "Hello", "max_tokens": 3}
    with openai.OpenAI(base_url=url, api_key=KEY) as ask:
        assert ask.completions.create(**asked).usage  # type: ignore[call-overload]
    with openai.OpenAI(base_url=url, api_key="another-key-than-that") as ask, pytest.raises(openai.AuthenticationError):
        ask.completions.create(**asked)  # type: ignore[call-overload]


def test_where_keys_are_asked_for_nothing_else_is_open_to_others(guarded: TritonServer) -> None:
    """The HTTP port alone listens on all addresses."""
    listening = {
        connection.laddr.port: connection.laddr.ip
        for connection in psutil.Process(guarded.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {guarded.ports.grpc, guarded.ports.metrics} <= listening.keys()
    assert {address.removeprefix("::ffff:") for address in listening.values()} == {"127.0.0.1"}


def test_a_stream_that_is_lost_ends_with_an_error_and_the_next_request_is_answered(engine_dir: Path) -> None:
    with TritonServer(engine_dir, ports=FREE) as server:
        connection, response = begin(server)
        psutil.Process(server.process.pid).kill()
        *_, last = response.read().decode().removesuffix("\n\n").split("\n\n")
        connection.close()
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["type"] == "server_error"
        assert "127.0.0.1" not in last
        with openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0) as ask:
            while server.is_ready:
                time.sleep(0.01)
            with pytest.raises(openai.InternalServerError) as refusal:
                ask.completions.create(model="nvlm", prompt="Hello", max_tokens=3)
            assert (refusal.value.status_code, refusal.value.response.headers["Retry-After"]) == (503, "1")
            assert server.wait_ready(60)
            assert ask.completions.create(model="nvlm", prompt="Hello", max_tokens=3).usage


def test_without_a_gateway_clients_meet_triton_itself(engine_dir: Path) -> None:
    with TritonServer(engine_dir, ports=FREE, with_gateway=False) as server:
        status, page = get(server.http_url, "/v2")
        assert (status, json.loads(page)["name"]) == (200, "triton")
        assert get(server.http_url, "/v1/models")[0] in (400, 404)
        with NvlmClient(server.grpc_url) as client:
            assert client.generate("Hello", options=Options(max_tokens=3)).num_output_tokens <= 3
