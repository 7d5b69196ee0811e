"""Stands for tritonserver's HTTP."""

from __future__ import annotations

import asyncio
import json
import threading

from aiohttp import web


class Upstream:
    """A plain HTTP server that says what reached it; a stream of it can be cut off."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.hung_up = threading.Event()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, body, request.headers.get("Content-Type", "")))
        if b"error" in body:
            sentence = json.loads(body)["text_input"]
            return web.json_response({"error": sentence}, status=400)
        if not request.path.endswith("generate_stream"):
            return web.Response(status=202, body=body, headers={"X-Upstream": "yes"})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        while b"flood" in body:
            try:
                await response.write(b"data: %s\n\n" % bytes(100_000))
            except (ConnectionError, asyncio.CancelledError):
                self.hung_up.set()
                raise
        try:
            await asyncio.sleep(0 if b"short" in body else 2 if b"2 seconds" in body else 30)
        except asyncio.CancelledError:
            self.hung_up.set()
            raise
        await response.write(b'data: {"error": "/srv/secret/model"}\n\n' if b"leak" in body else b"data: 2\n\n")
        if b"cut" in body:
            assert request.transport is not None
            request.transport.abort()
        return response
