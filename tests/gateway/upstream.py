"""Stands for tritonserver's HTTP."""

from __future__ import annotations

import asyncio
import json
import threading

from aiohttp import web

from ..web_thread import WebThread


class Upstream(WebThread):
    """A plain HTTP server that says what reached it; a stream of it can be cut off."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.hung_up = threading.Event()
        super().__init__()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, body, request.headers.get("Content-Type", "")))
        if b"data: " in body:  # the whole stream, sent as one piece
            return web.Response(text=json.loads(body)["text_input"])
        if b"error" in body or b"unknown model" in body:
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
