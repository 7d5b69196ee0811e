"""The gateway as a server: a port, a thread, a beginning and an end.

tritonserver 2.51 must not meet clients directly: a large form-encoded body or one of many small chunks ends it, a small
compressed body may inflate without limit, malformed JSON is its own fault (500), and an idle connection holds up its
end.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import uvicorn

from nvlm_trt.errors import BusyError, ServerError
from nvlm_trt.gateway.app import Served, make_app
from nvlm_trt.gateway.fetch import Fetcher
from nvlm_trt.gateway.protocol import bounded_protocol
from nvlm_trt.gateway.settings import GatewaySettings

BACKLOG = 2048
IDLE_SECONDS = 75
"""For how long a connection without requests is kept."""


class Gateway:
    """Serves HTTP from a thread of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        served: What it stands in front of.
        settings: How it treats its clients.
        grace: Seconds that requests under way have to finish when it stops.
        fetcher: Fetches images; None for one of the settings' domains.
    """

    def __init__(
        self,
        host: str,
        port: int,
        served: Served,
        settings: GatewaySettings,
        *,
        grace: float = 15.0,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._address = host, port
        self._app = (served, settings, fetcher)
        self._protocol = bounded_protocol(settings.limits)
        self._grace = grace
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="nvlm-gateway", daemon=True)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Begin to listen; returns when requests are taken.

        Raises:
            BusyError: the port is in use.
            ServerError: the gateway did not start.
        """
        host, port = self._address
        try:
            self._socket = _listening(host, port)
        except OSError:
            raise BusyError("the HTTP port cannot be used", seen=f"{host}:{port}", fix="give another port") from None
        config = uvicorn.Config(
            make_app(*self._app),
            http=self._protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=self._grace,  # type: ignore[arg-type]  # any number of seconds will do
        )
        self._server = uvicorn.Server(config)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServerError("the gateway did not start", fix="see the log")
            time.sleep(0.005)

    def stop(self) -> None:
        """Take no more requests, and end when those under way have finished. May be called twice."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._server is not None
        asyncio.run(self._server.serve(sockets=[self._socket] if self._socket else None))


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket; made as TCP's by name, without which asyncio leaves Nagle's algorithm on: 40 ms a request."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, port))
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one
