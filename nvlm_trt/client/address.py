"""The address of a server's gRPC, and how a channel to it is opened."""

from __future__ import annotations

from typing import Final

from nvlm_trt.errors import UserError
from nvlm_trt.loopback import DIRECT, MESSAGES, is_loopback

Option = tuple[str, int]

RECONNECTING: Final = (("grpc.initial_reconnect_backoff_ms", 1_000), ("grpc.max_reconnect_backoff_ms", 5_000))
"""A server that was restarted is found within seconds, where gRPC's own waits grow to two minutes, in which every
request fails at once."""


def channel_options(url: str) -> tuple[Option, ...]:
    """Options of a client's channel to ``HOST:PORT``; a proxy of the environment is for other machines only."""
    host = url.rpartition(":")[0]
    return (*MESSAGES, *RECONNECTING, *([DIRECT] if is_loopback(host) else []))


def check_address(url: str, service: str = "gRPC") -> None:
    """Refuse what is no ``HOST:PORT``: gRPC would try such an address for as long as it is let, or dial another port.

    Raises:
        UserError: it is none.
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError("this is no address of a server", seen=url or "nothing", expected=f"HOST:PORT of its {service}")
