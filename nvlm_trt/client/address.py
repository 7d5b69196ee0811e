"""The address of a server's gRPC."""

from __future__ import annotations

from nvlm_trt.errors import UserError


def check_address(url: str) -> None:
    """Refuse what is no ``HOST:PORT``: gRPC would try such an address for as long as it is let.

    Raises:
        UserError: it is none.
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError("this is no address of a server", seen=url, expected="HOST:PORT of its gRPC")
