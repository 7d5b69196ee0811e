"""What stands for the internet: a server of images on this machine, and a DNS that says what it is told."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from PIL import Image

from ..web_thread import WebThread


class Web(WebThread):
    """A server of images on this machine, standing for one of the internet."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.patience = True
        self.hung_up = threading.Event()
        super().__init__()

    async def answer(self, request: web.Request) -> web.StreamResponse:
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
