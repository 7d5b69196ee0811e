"""KServe's HTTP API, passed through to tritonserver: calls checked, answers as they come, errors made plain."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from yarl import URL

from nvlm_trt.errors import RequestError
from nvlm_trt.gateway.admission import Admission
from nvlm_trt.gateway.errors import LOST, ApiError, plain, too_late, unavailable
from nvlm_trt.gateway.exchange import Exchange, exchange_of
from nvlm_trt.gateway.json_request import check_generate
from nvlm_trt.gateway.metrics import STREAM_ERROR, Metrics
from nvlm_trt.gateway.plan import Plans, plan_generate
from nvlm_trt.gateway.waiting import wait_for_slot
from nvlm_trt.serving.faults import MARKS, NOT_SERVING
from nvlm_trt.serving.fields import CANCEL_ID, NVLM_FIELDS, REQUEST_FIELDS, REQUEST_ID, TRACEPARENT

MODEL: Final = r"/v2/models/(?P<model>nvlm|ensemble)(/versions/\d+)?/"
GENERATE: Final = re.compile(MODEL + r"generate(?P<stream>_stream)?")
CALL: Final = re.compile(MODEL + r"(generate(_stream)?|infer)")
ANY_CALL: Final = re.compile(r"/v2/models/.*", re.DOTALL)
FIELDS: Final = {"nvlm": NVLM_FIELDS, "ensemble": REQUEST_FIELDS}

DROPPED: Final = frozenset(
    {
        *("connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"),
        *("content-encoding", "accept-encoding", "authorization", "expect"),
    }
)
"""Headers that belong to one connection, describe a body that has been read and unpacked, or are for the gateway."""

MARK_WITHIN: Final = 100
"""Bytes of an error's body in which its mark stands, if it has one: after JSON's own and an ensemble's name."""

EVENT: Final = b"data: "
ERROR_EVENT: Final = EVENT + b'{"error":'

log = logging.getLogger(__name__)


class PassThrough:
    """Forwards requests.

    Args:
        session: Connections to tritonserver.
        upstream: ``host:port`` of its HTTP.
        admission: Told what requests take; whose slots inference waits for.
        metrics: Told when the texts of streams come.
        plans: Plans what JSON asks for; tensors in binary are the server's to read, and count as what others take.
        end: Has `nvlm` end the request of an id. Tritonserver tells it of clients of streams that go, of others not.
    """

    def __init__(
        self,
        session: Callable[[], ClientSession],
        upstream: str,
        admission: Admission,
        metrics: Metrics,
        plans: Plans | None = None,
        *,
        end: Callable[[str], None],
    ) -> None:
        self._plans = plans
        self._session = session
        self._upstream = f"http://{upstream}"
        self._admission = admission
        self._metrics = metrics
        self._end = end

    async def handle(self, request: Request) -> Response:
        """Answer a request below ``/v2``.

        Raises:
            ApiError: it is refused, or the server cannot be reached.
        """
        exchange = exchange_of(request.scope)
        body, match = exchange.body, GENERATE.fullmatch(exchange.path)
        stream = match is not None and match["stream"] is not None
        cancel_id = uuid.uuid4().hex if match is not None and match["model"] == "nvlm" and not stream else None
        if exchange.method == "POST" and ANY_CALL.fullmatch(exchange.path):
            if not CALL.fullmatch(exchange.path):
                raise ApiError(403, "only nvlm and ensemble can be called", code="not_allowed")
            if match is not None:
                body = _checked(body, match["model"], stream=stream)
                await self._plan(exchange, body)
                body = _told(body, exchange, cancel_id)
            async with asyncio.timeout_at(exchange.deadline):
                await wait_for_slot(exchange, self._admission, self._metrics)
        try:
            return await self._forward(exchange, body, is_json=match is not None, stream=stream)
        except (asyncio.CancelledError, ApiError):  # who asked has gone, the deadline is over, the server is lost
            if cancel_id is not None:
                self._end(cancel_id)
            raise

    async def _plan(self, exchange: Exchange, body: bytes) -> None:
        """Plan a generate call; one that cannot be answered is refused in the server's own words."""
        if self._plans is not None and exchange.place is not None:
            plan = await self._plans.ask(lambda planner: plan_generate(planner, body))
            self._admission.plan(exchange.place, plan.tokens)

    def _answered(self, exchange: Exchange) -> None:
        if exchange.place is not None and exchange.error is None:
            self._admission.answered(exchange.place)

    async def _forward(self, exchange: Exchange, body: bytes, *, is_json: bool, stream: bool) -> Response:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers.items()}
        headers = {name: value for name, value in headers.items() if name not in DROPPED}
        headers["accept-encoding"] = "identity"  # errors are read here
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if is_json:
            headers["content-type"] = "application/json"
        elif body and kind not in ("application/json", "application/octet-stream"):
            headers["content-type"] = "application/octet-stream"
        query = exchange.scope["query_string"].decode("latin-1")
        path = exchange.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        left = exchange.deadline - asyncio.get_running_loop().time()
        try:
            sent = self._session().request(
                exchange.method,
                URL(self._upstream + path, encoded=True),
                data=io.BytesIO(body) if body else None,  # bytes would be written at once, however many
                headers=headers,
                timeout=ClientTimeout(total=max(left, 0.001)),
            )
            answer = await exchange.stack.enter_async_context(sent)
            return await self._pass_on(exchange, answer, stream=stream)
        except TimeoutError:
            raise too_late() from None
        except ClientError:
            raise unavailable("the server is being replaced; try again in a moment") from None

    async def _pass_on(self, exchange: Exchange, answer: ClientResponse, *, stream: bool) -> Response:
        """Answer as tritonserver does: a stream as it comes, others whole."""
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
        if stream and answer.status == 200:
            return StreamingResponse(self._events(exchange, answer), status_code=answer.status, headers=kept)
        body = await answer.read()
        status = _true_status(answer.status, body)
        if status >= 400:
            body = _plain_body(body)
            exchange.error = f"status_{status}"
        if status == 503:
            exchange.error = "unavailable"  # the word that it has everywhere, and that alerts look at
            kept["Retry-After"] = "1"
        self._answered(exchange)
        return Response(body, status_code=status, headers=kept)

    async def _events(self, exchange: Exchange, answer: ClientResponse) -> AsyncIterator[bytes]:
        """A stream as it comes; each event that tells an error is made plain."""
        came = self._metrics.texts(exchange)
        try:
            rest = b""
            async for chunk in answer.content.iter_any():
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    plain = event
                    if event.startswith(ERROR_EVENT):
                        exchange.error, plain = STREAM_ERROR, _plain_body(event)
                    elif _has_text(event):
                        came()
                    yield plain + b"\n\n"
            if rest:
                yield rest
            self._answered(exchange)
        except (ClientError, TimeoutError) as error:
            log.warning("a stream was lost with the server, or took too long")
            told = ApiError(503, LOST, code="unavailable") if isinstance(error, ClientError) else too_late()
            exchange.error = told.word
            yield EVENT + json.dumps({"error": told.sentence}).encode() + b"\n\n"


def _checked(body: bytes, model: str, *, stream: bool) -> bytes:
    try:
        return check_generate(body, FIELDS[model], stream=stream)
    except RequestError as error:
        raise ApiError(400, str(error)) from None


def _told(body: bytes, exchange: Exchange, cancel_id: str | None) -> bytes:
    """The body of a generate call with what the models' spans and log lines refer to; a client's own goes first.

    The id by which it is ended is always ours: the body names none.
    """
    said = {REQUEST_ID: exchange.request_id, TRACEPARENT: exchange.span.traceparent}
    fresh = {name: value for name, value in said.items() if value and b'"%s"' % name.encode() not in body}
    fresh |= {CANCEL_ID: cancel_id} if cancel_id else {}
    rest = body.lstrip()[1:].lstrip()
    between = b"" if rest.startswith(b"}") or not fresh else b", "
    return json.dumps(fresh).encode()[:-1] + between + rest


def _plain_body(body: bytes) -> bytes:
    """The body or the event of an error, its sentence made plain; what has no sentence gets one."""
    mark = EVENT if body.startswith(EVENT) else b""
    try:
        said = json.loads(body.removeprefix(mark))["error"]
    except (ValueError, KeyError, TypeError):
        said = ""
    return mark + json.dumps({"error": plain(str(said))}).encode()


def _has_text(event: bytes) -> bool:
    """Whether an event brings text: the last one may say nothing but why the answer ended."""
    try:
        return bool(json.loads(event.removeprefix(EVENT))["text_output"])
    except (ValueError, KeyError, TypeError):
        return False


def _true_status(status: int, body: bytes) -> int:
    """The status that an answer deserves, which for decoupled models Triton always makes 400."""
    beginning = body[:MARK_WITHIN].decode(errors="replace")
    if status >= 400 and (NOT_SERVING.search(beginning) or (status == 400 and MARKS["UNAVAILABLE"] in beginning)):
        return 503
    if status == 400 and MARKS["INTERNAL"] in beginning:
        return 500
    return status
