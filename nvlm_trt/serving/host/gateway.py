"""The HTTP door in front of tritonserver, which itself listens on loopback only.

tritonserver 2.51 must not meet clients directly: a large form-encoded body or one of many small chunks ends it, a small
compressed body may inflate without limit, malformed JSON is its own fault (500), and an idle connection holds up its
end. The door reads a body whole, within a limit, checks generate calls, and passes the rest on as it is; answers are
passed through as they come. When the server is replaced, running streams end with an error event, and new requests are
told to come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Callable
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web

from nvlm_trt.errors import BusyError, RequestError
from nvlm_trt.serving.faults import MARKS
from nvlm_trt.serving.fields import NVLM_FIELDS, REQUEST_FIELDS
from nvlm_trt.serving.host.json_request import check_generate

GENERATE: Final = re.compile(r"/v2/models/(?P<model>nvlm|ensemble)(/versions/\d+)?/generate(?P<stream>_stream)?")
FIELDS: Final = {"nvlm": NVLM_FIELDS, "ensemble": REQUEST_FIELDS}
READY: Final = "/v2/health/ready"
LIVE: Final = "/v2/health/live"
"""Answered here: a server that is being replaced, which takes minutes on the gpu target, needs no other help."""

DROPPED: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length", "content-encoding"}
)
"""Headers that belong to one connection, or describe a body that has been read and unpacked."""

MARK_WITHIN: Final = 100
"""Bytes of an error's body in which its mark stands, if it has one: after JSON's own and an ensemble's name."""

GONE: Final = "the server lost this request; send it again"

log = logging.getLogger(__name__)


class Gateway:
    """Serves HTTP from a thread of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        upstream: ``host:port`` of tritonserver.
        max_body_bytes: Largest body, after unpacking.
        is_ready: Whether the server answers now.
        grace: Seconds that requests under way have to finish when it stops.
    """

    def __init__(
        self,
        host: str,
        port: int,
        upstream: str,
        *,
        max_body_bytes: int,
        is_ready: Callable[[], bool],
        grace: float = 15.0,
    ) -> None:
        self._address = host, port
        self._upstream = f"http://{upstream}"
        self._max_body_bytes = max_body_bytes
        self._is_ready = is_ready
        self._grace = grace
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._started = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="nvlm-gateway", daemon=True)

    def start(self) -> None:
        """Begin to listen.

        Raises:
            BusyError: the port is in use.
        """
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            host, port = self._address
            raise BusyError("the HTTP port cannot be used", seen=f"{host}:{port}", fix="give another port")

    def stop(self) -> None:
        """Take no more requests, and end when those under way have finished. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._error = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        # A client that hangs up cancels its handler, which closes the connection to tritonserver: that ends decoding.
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=self._grace)
        async with ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False) as session:
            self._session = session
            await runner.setup()
            try:
                await web.TCPSite(runner, *self._address).start()
                self._started.set()
                await self._closing.wait()
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == LIVE:
            return web.Response()
        if request.path == READY and not self._is_ready():
            return _refusal(503, "the server is not ready")
        try:
            body = await self._read(request)
        except RequestError as error:
            return _refusal(413, str(error))
        match = GENERATE.fullmatch(request.path)
        stream = match is not None and match["stream"] is not None
        if match is not None and request.method == "POST":
            try:
                body = check_generate(body, FIELDS[match["model"]], stream=stream)
            except RequestError as error:
                return _refusal(400, str(error))
        return await self._forward(request, body, is_json=match is not None, stream=stream)

    async def _read(self, request: web.Request) -> bytes:
        limit = self._max_body_bytes
        if (request.content_length or 0) > limit:
            raise RequestError("the request is too large", seen=f"{request.content_length} bytes", expected=limit)
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise RequestError("the request is too large", seen="more", expected=f"at most {limit} bytes")
        return bytes(body)

    async def _forward(self, request: web.Request, body: bytes, *, is_json: bool, stream: bool) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        if is_json:
            headers["Content-Type"] = "application/json"
        elif body and request.content_type not in ("application/json", "application/octet-stream"):
            headers["Content-Type"] = "application/octet-stream"
        try:
            sent = self._session.request(
                request.method, self._upstream + request.raw_path, data=body or None, headers=headers
            )
            async with sent as answer:
                return await _pass_on(request, answer, stream=stream)
        except ClientError:
            return _refusal(503, "the server is being replaced; try again in a moment")


async def _pass_on(request: web.Request, answer: ClientResponse, *, stream: bool) -> web.StreamResponse:
    """Send an answer of tritonserver to the client as it comes."""
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED - {"content-encoding"}}
    if not stream or answer.status != 200:
        body = await answer.read()
        return web.Response(status=_true_status(answer.status, body), headers=kept, body=body)
    response = web.StreamResponse(status=answer.status, headers=kept)
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await _write(response, chunk)
    except _ClientGoneError:
        return response  # leaving closes the connection to tritonserver, which ends the decoding
    except ClientError:
        log.warning("a stream was lost with the server")
        await response.write(b"data: " + json.dumps({"error": GONE}).encode() + b"\n\n")
    await response.write_eof()
    return response


class _ClientGoneError(Exception):
    """The client closed its connection."""


async def _write(response: web.StreamResponse, chunk: bytes) -> None:
    try:
        await response.write(chunk)
    except ConnectionError:
        raise _ClientGoneError from None


def _true_status(status: int, body: bytes) -> int:
    """The status that an error deserves, which for decoupled models Triton always makes 400."""
    beginning = body[:MARK_WITHIN].decode(errors="replace")
    if status == 400 and MARKS["UNAVAILABLE"] in beginning:
        return 503
    if status == 400 and MARKS["INTERNAL"] in beginning:
        return 500
    return status


def _refusal(status: int, sentence: str) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return web.json_response({"error": sentence}, status=status, headers=headers)
