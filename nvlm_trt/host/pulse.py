"""Asks a running server again and again for what only a server that works can answer."""

from __future__ import annotations

import threading
from typing import Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt.host.selftest import echo_works
from nvlm_trt.loopback import DIRECT

PULSE_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 10.0


class Pulse:
    """Lets the model `selftest` echo by HTTP, and asks gRPC whether it lives, in turns, until stopped.

    Model processes tell themselves that they live; that the server between them and the clients does, on both of its
    ports, is seen by being one of these.

    Args:
        http: ``host:port`` of tritonserver's HTTP.
        grpc_address: ``host:port`` of its gRPC.

    Attributes:
        count: Rounds that were answered.
    """

    def __init__(self, http: str, grpc_address: str) -> None:
        self.count = 0
        self._http = http
        self._grpc = grpc_address
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="nvlm-pulse", daemon=True).start()

    def stop(self) -> None:
        """Ask no more; does not wait for the answer under way."""
        self._stopped.set()

    def _run(self) -> None:
        with grpc.insecure_channel(self._grpc, options=[DIRECT]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._stopped.wait(PULSE_SECONDS):
                if echo_works(self._http) and _lives(stub):
                    self.count += 1


def _lives(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> bool:
    try:
        return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=TIMEOUT_SECONDS).live)
    except grpc.RpcError:
        return False
