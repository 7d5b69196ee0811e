"""TCP ports of the server: free ones, and a clear word when a given one is taken."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from nvlm_trt.errors import BusyError


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of HTTP, gRPC and metrics; 0 takes any free one, when the server is started."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def words(self) -> tuple[str, str, str]:
        """The ports for a command line; HTTP_PORT, GRPC_PORT and METRICS_PORT stand for those chosen at the start."""
        return (
            str(self.http or "HTTP_PORT"),
            str(self.grpc or "GRPC_PORT"),
            str(self.metrics or "METRICS_PORT"),
        )

    def check(self) -> None:
        """Look whether they differ.

        Raises:
            BusyError: two are the same.
        """
        given = [port for port in (self.http, self.grpc, self.metrics) if port]
        if len(set(given)) < len(given):
            raise BusyError("two services cannot share a port", seen=given, fix="give different ports")

    def held(self, host: str) -> HeldPorts:
        """These ports, every 0 replaced by a free one, kept from everybody else until they are released.

        Raises:
            BusyError: one of them is in use, or two are the same.
        """
        self.check()
        with contextlib.ExitStack() as sockets:
            bound = [sockets.enter_context(_bound(host, port)) for port in (self.http, self.grpc, self.metrics)]
            return HeldPorts(Ports(*(int(one.getsockname()[1]) for one in bound)), sockets.pop_all())


@dataclass(frozen=True, slots=True)
class HeldPorts:
    """Ports with a bound socket on each, so that the kernel gives them to no connection and no other server.

    The sockets do not listen and have SO_REUSEADDR, as tritonserver's and the gateway's own have: on Linux those may
    bind and listen beside them (socket(7)), also when a server is replaced.

    Attributes:
        ports: The ports, none of them 0.
    """

    ports: Ports
    _sockets: contextlib.ExitStack

    def release(self) -> None:
        """Give the ports up."""
        self._sockets.close()


def _bound(host: str, port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((host, port))
    except OSError as error:
        one.close()
        fix = "stop what uses it, or give another port (0 takes a free one)"
        raise BusyError(f"the server cannot use a port ({error.strerror})", seen=f"{host}:{port}", fix=fix) from None
    return one
