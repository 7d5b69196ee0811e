"""OpenAI's endpoints: chat completions, completions, models."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from nvlm_trt.client import Answer
from nvlm_trt.gateway.conversation import conversation_of
from nvlm_trt.gateway.errors import ApiError, api_error
from nvlm_trt.gateway.exchange import Exchange, exchange_of
from nvlm_trt.gateway.images import Images
from nvlm_trt.gateway.json_route import JsonRoute
from nvlm_trt.gateway.model import Ask, Model, Pieces
from nvlm_trt.gateway.schema import ChatRequest, CompletionRequest
from nvlm_trt.tracing import stage

DONE: Final = b"data: [DONE]\n\n"
SSE_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second tells nginx to pass events on as they come."""

Choice = dict[str, Any]
LogProbs = dict[str, Any] | None


class PromptTokensDetails(BaseModel):
    """Tokens of a prompt that were in the KV cache already."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request and its answer, visual ones included; details where the decoder tells them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An answer of every status from 400 on."""

    error: ErrorBody


class Completion(BaseModel):
    """An answer that is no stream."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nvlm-trt"


class ModelList(BaseModel):
    """The models that can be asked."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


ERRORS: Final[dict[int | str, dict[str, Any]]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            "text/event-stream": {"schema": {"description": "Events, each with an object in JSON; then [DONE]."}}
        }
    }
}


class Form:
    """How an endpoint writes an answer.

    Args:
        name: Of an answer, and how its id begins.
        chunk: Of a piece of a stream.
        whole: From a text and a reason to a choice.
        piece: From a text and a reason to a choice of a stream.
    """

    def __init__(
        self, prefix: str, name: str, chunk: str, whole: Callable[[str], Choice], piece: Callable[[str], Choice]
    ) -> None:
        self.prefix = prefix
        self.name = name
        self.chunk = chunk
        self.whole = whole
        self.piece = piece

    def head(self, exchange: Exchange, model: str, *, stream: bool) -> dict[str, Any]:
        """What every answer, and every event, begins with."""
        kind = self.chunk if stream else self.name
        return {"id": f"{self.prefix}-{exchange.request_id}", "object": kind, "created": _now(), "model": model}


def _chat_piece(text: str) -> Choice:
    return {"delta": {"content": text} if text else {}}


CHAT: Final = Form(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    _chat_piece,
)
TEXT: Final = Form(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}
)


def openai_routes(model: Callable[[], Model], images: Images, names: Sequence[str]) -> APIRouter:
    """The routes below ``/v1``.

    Args:
        model: The model that answers.
        images: Reads image URLs.
        names: How clients may call the model; the first is its own.
    """
    router = APIRouter(prefix="/v1", responses=ERRORS, route_class=JsonRoute)
    began = _now()

    @router.get("/models", response_model=ModelList)
    async def list_models() -> ModelList:
        return ModelList(data=[ModelCard(id=name, created=began) for name in names])

    @router.get("/models/{name}", response_model=ModelCard)
    async def show_model(name: str) -> ModelCard:
        require_model(name, names)
        return ModelCard(id=name, created=began)

    @router.post("/chat/completions", response_model=Completion, responses=STREAMED)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        require_model(asked.model, names)
        exchange = exchange_of(request.scope)
        said = conversation_of(asked.messages)
        with stage(exchange.span, "images"), exchange.reading_images():
            files = await images.read(said.images, exchange.hold)
        exchange.note(images=len(files))
        ask = Ask(said.question, asked.options(), said.history, said.system, files)
        return await _answer(model(), ask, exchange, CHAT, asked)

    @router.post("/completions", response_model=Completion, responses=STREAMED)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        require_model(asked.model, names)
        return await _answer(model(), Ask(asked.text, asked.options()), exchange_of(request.scope), TEXT, asked)

    return router


async def _answer(
    model: Model, ask: Ask, exchange: Exchange, form: Form, asked: ChatRequest | CompletionRequest
) -> Response:
    head = form.head(exchange, asked.model, stream=bool(asked.stream))
    if asked.stream:
        pieces = await model.stream(ask, exchange)

        def new_log_probs() -> LogProbs:
            return {"content": model.spelled(pieces.new_tokens())} if asked.logprobs else None

        events = _events(pieces, head, form, exchange, new_log_probs, with_usage=asked.wants_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)
    answer = await model.answer(ask, exchange)
    log_probs = {"content": model.spelled(answer.tokens), "refusal": None} if asked.logprobs else None
    choice = {"index": 0, **form.whole(answer.text), "logprobs": log_probs, "finish_reason": answer.finish_reason}
    return JSONResponse({**head, "choices": [choice], "usage": _usage(answer)})


async def _events(
    pieces: Pieces,
    head: dict[str, Any],
    form: Form,
    exchange: Exchange,
    new_log_probs: Callable[[], LogProbs],
    *,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    """The events of a stream; an error ends it with an event of its own and without the end mark."""
    usage = {"usage": None} if with_usage else {}

    def event(choice: Choice, reason: str | None = None, log_probs: LogProbs = None) -> bytes:
        full = {"index": 0, **choice, "logprobs": log_probs, "finish_reason": reason}
        return _event({**head, "choices": [full], **usage})

    if form is CHAT:
        yield event({"delta": {"role": "assistant", "content": ""}})
    try:
        async for text in pieces:
            yield event(form.piece(text), None, new_log_probs())
        answer = await pieces.answer()
    except Exception as error:
        told = api_error(error)
        exchange.error = told.word
        yield told.event(exchange.path)
        return
    yield event(form.piece(""), answer.finish_reason, new_log_probs())
    if with_usage:
        yield _event({**head, "choices": [], "usage": _usage(answer)})
    yield DONE


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(answer: Answer) -> dict[str, Any]:
    cached = answer.num_cached_tokens
    return Usage(
        prompt_tokens=answer.num_input_tokens,
        completion_tokens=answer.num_output_tokens,
        total_tokens=answer.num_input_tokens + answer.num_output_tokens,
        prompt_tokens_details=None if cached is None else PromptTokensDetails(cached_tokens=cached),
    ).model_dump(exclude_none=True)


def require_model(name: str, names: Sequence[str]) -> None:
    """Refuse a name that is not the model's.

    Raises:
        ApiError: 404.
    """
    if name not in names:
        sentence = f"there is no such model; expected: {' or '.join(names)}"
        raise ApiError(404, sentence, code="model_not_found", param="model")


def _now() -> int:
    return int(time.time())
