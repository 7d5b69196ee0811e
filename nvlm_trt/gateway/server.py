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
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvlm_trt.errors import BusyError, ServerError
from nvlm_trt.gateway.app import Served, make_app
from nvlm_trt.gateway.fetch import Fetcher
from nvlm_trt.gateway.protocol import bounded_protocol
from nvlm_trt.gateway.settings import GatewaySettings

BACKLOG = 2048
LAST_SECONDS = 1
"""For answers of after the drain: refusals, and what clients have not read yet."""

IDLE_SECONDS = 75
"""For how long a connection without requests is kept."""

CLOSE: Final = (b"connection", b"close")


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: Draining | None = None
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
        self._draining = Draining(make_app(*self._app))
        config = uvicorn.Config(
            self._draining,
            http=self._protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServerError("the gateway did not start", fix="see the log")
            time.sleep(0.005)

    def drain(self, hurry: threading.Event) -> None:
        """Close connections that are idle, and others with their next answer; wait for the requests under way.

        It goes on listening, so that whoever comes now is told (by the application, which knows) instead of finding
        nobody. Returns when the grace period is over, at the latest.

        Args:
            hurry: Set to wait no longer.
        """
        if self._draining is None or self._server is None or self._loop is None:
            return
        self._draining.began = True
        self._loop.call_soon_threadsafe(_close_idle, self._server)
        deadline = time.monotonic() + self._grace
        while self._draining.under_way and time.monotonic() < deadline and not hurry.wait(0.02):
            continue

    def stop(self) -> None:
        """Listen no more, and end; a request still under way is cut off. May be called twice."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        assert self._server is not None
        asyncio.run(self._serve(self._server))

    async def _serve(self, server: uvicorn.Server) -> None:
        self._loop = asyncio.get_running_loop()
        await server.serve(sockets=[self._socket] if self._socket else None)


class Draining:
    """The application, and how many of its requests began before the end did.

    Args:
        app: The application.

    Attributes:
        began: Whether the server is about to end: every answer that begins from now on closes its connection.
        under_way: Requests that had begun before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.began = False
        self.under_way = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def closing(message: Message) -> None:
            if self.began and message["type"] == "http.response.start":
                message = {**message, "headers": [one for one in message["headers"] if one[0] != CLOSE[0]] + [CLOSE]}
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self.began:
            await self._app(scope, receive, closing)
        else:
            self.under_way += 1
            try:
                await self._app(scope, receive, closing)
            finally:
                self.under_way -= 1


def _close_idle(server: uvicorn.Server) -> None:
    """As uvicorn does itself when it ends, but while it still listens."""
    for connection in list(server.server_state.connections):
        connection.shutdown()


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
