"""An HTTP server for tests, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

from aiohttp import web


class WebThread:
    """Serves every path by `answer` on a free port of this machine, until closed.

    Attributes:
        port: Its port.
    """

    def __init__(self) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Stop; requests under way are cut off."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request; cancelled when its client hangs up."""
        raise NotImplementedError

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert isinstance(site._server, asyncio.Server)
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        return runner
