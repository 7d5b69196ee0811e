"""Calls that manage the server, from clients, on every port and by every name of a path (fault 24)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from .conftest import FaultRecord, Watch
from .served import Served
from .wire import ask, assert_clear

Begin = Callable[[], Watch]

CALLS = (
    ("POST", "repository/index"),
    ("POST", "repository/models/nvlm/load"),
    ("POST", "repository/models/nvlm/unload"),
    ("GET", "systemsharedmemory/status"),
    ("POST", "systemsharedmemory/region/x/register"),
    ("POST", "systemsharedmemory/unregister"),
    ("GET", "cudasharedmemory/status"),
    ("POST", "cudasharedmemory/region/x/register"),
    ("POST", "cudasharedmemory/unregister"),
    ("GET", "logging"),
    ("POST", "logging"),
    ("GET", "trace/setting"),
    ("POST", "trace/setting"),
    ("POST", "models/nvlm/trace/setting"),
)
"""Method and path below ``/v2/``."""


def aliases(path: str) -> list[str]:
    """Other spellings of a path below ``/v2/``."""
    coded = "".join(f"%{ord(letter):02x}" for letter in path[:3]) + path[3:]
    return [
        f"/v2/{path}",
        f"/v2/{path}/",
        f"/v2//{path}",
        f"//v2/{path}",
        f"/v2/./{path}",
        f"/v2/models/../{path}",
        f"/v2/models/nvlm/../../{path}",
        f"/v2/models/nvlm/%2e%2e/%2e%2e/{path}",
        f"/v2/{coded}",
        f"/v2/{path}?a=b",
        f"/v2/{path}%00",
        f"/V2/{path}",
        f"/v2/{path.upper()}",
        f"/v1/../v2/{path}",
        f"/health/live/../../v2/{path}",
        f"http://a/v2/{path}",
    ]


@pytest.fixture(scope="module")
def ports(served: Served) -> dict[str, str]:
    """Every port on which HTTP is spoken, tritonserver's own ones on loopback too."""
    listening = {
        connection.laddr.port
        for process in served.processes
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    inner = listening - {int(address.split(":")[1]) for address in (served.http, served.grpc, served.metrics)}
    assert len(inner) == 1
    return {"gateway": served.http, "tritonserver's own": f"127.0.0.1:{inner.pop()}", "metrics": served.metrics}


@pytest.mark.fault(case=24)
@pytest.mark.parametrize("port", ["gateway", "tritonserver's own", "metrics"])
def test_no_spelling_of_a_path_manages_the_server_without_the_key(
    served: Served, ports: dict[str, str], watch: Begin, fault_record: FaultRecord, port: str
) -> None:
    began, slowest = watch(), 0.0
    for method, path in CALLS:
        for spelled in aliases(path):
            for headers in ({}, {"nvlm-admin": "guessed"}):
                answer = ask(ports[port], spelled, b"{}" if method == "POST" else None, headers, method)
                nothing = port == "metrics" and not answer.body  # it says so to every GET
                refused = answer.status in (400, 403, 404, 405)
                assert refused or nothing, f"{method} {spelled}: {answer.status} {answer.body!r}"
                slowest = max(slowest, answer.ms)
                if port == "gateway" and answer.body:
                    assert_clear(answer.sentence)
    growth, seen = began.end()
    fault_record(time_ms=slowest, memory_mb=growth, others=seen, variant=f"port: {port}")


@pytest.mark.fault(case=24)
@pytest.mark.parametrize("path", ["/ping", "/invocations", "/models", "/predict", "/v2/models/nvlm/load"])
def test_the_paths_of_hosted_services_are_not_there(served: Served, fault_record: FaultRecord, path: str) -> None:
    for method in ("GET", "POST"):
        answer = ask(served.http, path, b"{}" if method == "POST" else None)
        assert answer.status in (400, 403, 404, 405)
        assert_clear(answer.sentence)
    fault_record(time_ms=answer.ms, variant=path)


MANAGE: dict[str, Callable[[triton.InferenceServerClient], object]] = {
    "repository index": lambda client: client.get_model_repository_index(),
    "load": lambda client: client.load_model("nvlm"),
    "unload": lambda client: client.unload_model("nvlm"),
    "shared memory status": lambda client: client.get_system_shared_memory_status(),
    "register shared memory": lambda client: client.register_system_shared_memory("x", "/x", 64),
    "unregister shared memory": lambda client: client.unregister_system_shared_memory(),
    "CUDA shared memory status": lambda client: client.get_cuda_shared_memory_status(),
    "register CUDA shared memory": lambda client: client.register_cuda_shared_memory("x", b"eA==", 0, 64),
    "trace settings": lambda client: client.get_trace_settings(),
    "change trace settings": lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    "log settings": lambda client: client.get_log_settings(),
    "change log settings": lambda client: client.update_log_settings({"log_file": "x"}),
}


@pytest.mark.fault(case=24)
@pytest.mark.parametrize("name", MANAGE)
def test_grpc_manages_nothing_without_the_key(served: Served, fault_record: FaultRecord, name: str) -> None:
    with triton.InferenceServerClient(served.grpc) as client, pytest.raises(InferenceServerException) as refusal:
        MANAGE[name](client)
    assert "restricted" in refusal.value.message()
    fault_record(variant=f"gRPC: {name}")


@pytest.mark.fault(case=24)
def test_what_is_told_of_the_models_holds_no_path_of_the_server(served: Served) -> None:
    for path in ("/v2", "/v2/models/nvlm", "/v2/models/nvlm/config", "/v2/models/nvlm/stats", "/v2/models/stats"):
        answer = ask(served.http, path)
        assert answer.status == 200
        for leak in (b"/tmp", b"/work", b"/home", b"/usr", b"/root"):
            assert leak not in answer.body
