"""The pulse of a server, where the environment names a proxy."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt.host import pulse as pulses


class Living(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that lives."""

    def ServerLive(  # noqa: N802 - the protocol's name
        self, request: service_pb2.ServerLiveRequest, context: grpc.ServicerContext
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)


@pytest.fixture
def living() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Living(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def test_a_server_that_lives_is_seen_past_a_proxy(
    proxy: socket.socket, living: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses, "echo_works", lambda url: True)
    pulse = pulses.Pulse("127.0.0.1:1", living)
    deadline = time.monotonic() + 60
    while not pulse.count and time.monotonic() < deadline:
        time.sleep(0.05)
    pulse.stop()
    assert pulse.count
