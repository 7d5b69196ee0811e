"""Connections that no proxy of the environment (`http_proxy`) comes between: those to this machine itself.

A proxy elsewhere would look for 127.0.0.1 on its own machine. `no_proxy` keeps it out where somebody has set it; where
Docker hands a proxy to its containers, often nobody has.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from typing import Final

LOOPBACK: Final = "127.0.0.1"

MESSAGES: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
"""Options of a gRPC channel for messages of any size, as tritonclient sets it where it is given no options."""

DIRECT: Final = ("grpc.enable_http_proxy", 0)
"""Option of a gRPC channel that no proxy comes between."""

DIRECT_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without a proxy."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address (one of IPv6 with or without brackets) leads to this machine itself.

    0.0.0.0 and ``::`` do, too: a server listens on them, and who connects to them comes to this machine.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    return address.is_loopback or address.is_unspecified


def opener_for(host: str) -> urllib.request.OpenerDirector:
    """What opens URLs of a host: past a proxy where it is this machine, else as the environment says."""
    return DIRECT_OPENER if is_loopback(host) else urllib.request.build_opener()
