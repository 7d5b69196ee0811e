"""What stands for the internet: a server of images on this machine, and a DNS that says what it is told."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from PIL import Image


class Web:
    """A server of images on this machine, standing for one of the internet."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.patience = True
        self.hung_up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert isinstance(site._server, asyncio.Server)
        self.port = site._server.sockets[0].getsockname()[1]
        self._ready.set()
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.seen.append(path)
        if path == "missing":
            raise web.HTTPNotFound
        if path == "page":
            return web.Response(text="<html>", content_type="text/html")
        if path.startswith("to/"):
            raise web.HTTPFound(path.removeprefix("to/"))
        if path == "red.png":
            file = io.BytesIO()
            Image.new("RGB", (64, 48), "red").save(file, "PNG")
            return web.Response(body=file.getvalue(), content_type="image/png")
        answer = web.StreamResponse(headers={"Content-Type": "image/png"})
        await answer.prepare(request)
        try:
            while path != "slow" or self.patience:  # slow or endless
                await answer.write(b"x" if path == "slow" else bytes(1 << 16))
                await asyncio.sleep(0.05 if path == "slow" else 0)
        except (ConnectionError, asyncio.CancelledError):
            self.hung_up.set()
            raise
        return answer


def resolving(*answers: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A DNS that gives one answer after the other, the last one for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve
