"""Triton model `nvlm`: the orchestrator.

One thread with an event loop does everything that talks to the server (see `nvlm_trt.serving.llm` for why). Requests
are prepared in this process, by threads of its own, so that images come compressed up to here and their pixels cross
one boundary between models, that to the vision encoder; a prompt table does not come here at all.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.logs import fields
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.serving.config_common import MULTIMODAL_DECODER
from nvlm_trt.serving.decode_client import DecodeClient, GrpcDecoding
from nvlm_trt.serving.decoder_tensors import CACHED_TOKENS, DECODER_FROM_PREPROCESSING
from nvlm_trt.serving.faults import CancelledByClientError, UnavailableError
from nvlm_trt.serving.fields import CANCEL, CANCEL_ID, NVLM_FIELDS, REQUEST_ID, refuse_unknown
from nvlm_trt.serving.heartbeat import Heartbeat, Progress
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.metrics import Seconds
from nvlm_trt.serving.models.tensors import (
    FINAL,
    failure,
    inputs_of,
    is_cancelled,
    parameters,
    response,
    texts,
    wants_codes,
)
from nvlm_trt.serving.orchestrator import Orchestrator, Piece
from nvlm_trt.serving.preprocessing import NUM_TILES, TILES, Preprocessor
from nvlm_trt.serving.requests import Tensors
from nvlm_trt.tracing import Span, word_of

Array = npt.NDArray[Any]

IMAGE_THREADS: Final = 16
TEXT_THREADS: Final = 2
"""Requests with and without images that are prepared at once. They do not wait for each other: a photograph takes a
hundred times as long as a text. How many images are decoded at once is the preprocessor's own affair."""

POLL_SECONDS: Final = 0.05
POLL_SECONDS_PER_REQUEST: Final = 0.002
"""How often clients are looked after; with many requests less often, each look costs a call to the server."""

log = logging.getLogger(__name__)

CACHED: Final = CACHED_TOKENS[0]
NOTHING: Final = Piece("", "", 0, 0)
"""The last response to a request that was given up: one without tensors would not be sent."""

PREPROCESSED: Final = [name for name, _, _ in DECODER_FROM_PREPROCESSING] + [NUM_TILES]


class _Backends:
    """What a request goes through: the preprocessor in this process, the engines over gRPC."""

    def __init__(self, preprocessor: Preprocessor, decoder: DecodeClient, seconds: Seconds) -> None:
        self._preprocessor = preprocessor
        self._decoder = decoder
        self._images = ThreadPoolExecutor(IMAGE_THREADS, "nvlm-images")
        self._texts = ThreadPoolExecutor(TEXT_THREADS, "nvlm-texts")
        self._seconds = seconds

    async def preprocess(self, tensors: Tensors, *, with_tiles: bool) -> Mapping[str, Array]:
        """Tiles, ids and sampling values; being cancelled ends the reading of images."""
        given_up = threading.Event()

        def watch() -> None:
            if given_up.is_set():
                raise CancelledByClientError("the request was cancelled")

        threads, wanted = (self._images, [*PREPROCESSED, TILES]) if with_tiles else (self._texts, PREPROCESSED)
        began = time.monotonic()
        run, loop = self._preprocessor.run, asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(threads, run, tensors, wanted, watch)
        except asyncio.CancelledError:
            given_up.set()
            raise
        self._seconds.observe(time.monotonic() - began)
        return prepared

    async def decode(self, inputs: Mapping[str, Array], tiles: Array | None, span: Span) -> GrpcDecoding:
        """Start the decoder, with the prompt table of these tiles where there are any."""
        if tiles is None:
            return self._decoder.start(inputs, span.traceparent)
        return await self._decoder.start_ensemble(MULTIMODAL_DECODER, {**inputs, TILES: tiles}, span.traceparent)

    async def close(self) -> None:
        """Close the connection to the decoder; requests that are being prepared are left to end by themselves."""
        self._images.shutdown(wait=False)
        self._texts.shutdown(wait=False)
        await self._decoder.close()


class TritonPythonModel(Model):
    """Answers requests, many at once."""

    def load(self) -> None:
        """Load the tokenizer and start the event loop."""
        self.tokenizer = NvlmTokenizer.load(self.engine_dir / TOKENIZER)
        self.tasks: dict[asyncio.Task[None], Any] = {}
        self.turned, self.turns = threading.Event(), 0
        self.thread = threading.Thread(target=asyncio.run, args=(self._main(),), name="nvlm-loop", daemon=True)
        self.thread.start()
        self.turned.wait()

    def make_heartbeat(self, name: str) -> Heartbeat:
        """Tell whether the event loop turns."""
        return Heartbeat(name, still=Progress(self._turns), active=lambda: len(self.tasks))

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand requests to the event loop."""
        for request in requests:
            self.loop.call_soon_threadsafe(self._take, request, request.get_response_sender())

    def finalize(self) -> None:
        """End the event loop, and with it the requests under way."""
        if self.heartbeat is not None:
            self.heartbeat.stop()  # it asks the loop
        self.loop.call_soon_threadsafe(self.closing.set)
        self.thread.join()
        super().finalize()

    async def _main(self) -> None:
        self.loop, self.closing = asyncio.get_running_loop(), asyncio.Event()
        decoder = DecodeClient(
            self.spec.tile_size if self.spec.cpu else None,
            tells_cached=CACHED in self.output_names,  # not on GPUs
        )
        seconds = self.metrics.seconds("nvlm_preprocessing_seconds", "From a request's coming to its tiles and ids")
        backends = _Backends(Preprocessor(self.spec, self.tokenizer), decoder, seconds)
        self.orchestrator = Orchestrator(backends, self.tokenizer)
        watcher = self.loop.create_task(self._watch())
        self.turned.set()
        await self.closing.wait()
        watcher.cancel()
        for task in self.tasks:
            self._give_up(task)
        await asyncio.gather(watcher, *self.tasks, return_exceptions=True)
        await backends.close()

    def _turns(self) -> int:
        """How often the event loop has answered; asks it again."""
        if self.turned.is_set():
            self.turned.clear()
            self.turns += 1
            self.loop.call_soon_threadsafe(self.turned.set)
        return self.turns

    def _take(self, request: Any, sender: Any) -> None:
        try:
            said = parameters(request)
            if said.get(CANCEL) is True:
                self._cancel(request.request_id())
                self._end(sender, _response(NOTHING))
                return
        except ValueError as fault:
            self._end(sender, failure(fault))
            return
        if len(self.tasks) >= self.spec.max_requests:
            busy = UnavailableError("the server is busy", fix="try again later")
            self._end(sender, failure(busy, coded=wants_codes(request)))
            return
        task = self.loop.create_task(self._answer(request, sender), name=said.get(CANCEL_ID) or request.request_id())
        self.tasks[task] = sender
        task.add_done_callback(self.tasks.pop)

    def _cancel(self, request_id: str) -> None:
        """End the requests of this id; an unknown id is nothing to do."""
        for task in self.tasks:
            if request_id and task.get_name() == request_id:
                self._give_up(task)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        """Cancel a request, after its first step: a task that is cancelled before it never runs, and ends nothing."""
        self.loop.call_soon(task.cancel)

    async def _answer(self, request: Any, sender: Any) -> None:
        """Answer a request; whatever becomes of it is said in its span and in a line of the log."""
        began, piece, error = time.monotonic(), None, None
        span = self.span_of(request).child("nvlm")
        try:
            refuse_unknown((name for name in parameters(request) if name != CANCEL_ID), NVLM_FIELDS)
            async for piece in self.orchestrator.answer(inputs_of(request, self.input_names), span):
                if piece.reason:
                    self._end(sender, _response(piece))
                else:
                    sender.send(_response(piece), flags=0)
        except asyncio.CancelledError as given_up:
            error = word_of(given_up)
            ends = UnavailableError("the server is ending", fix="send the request again")
            coded = wants_codes(request)
            self._end(sender, failure(ends, coded=coded) if self.closing.is_set() else _response(NOTHING))
        except Exception as fault:
            error = word_of(fault)
            self._end(sender, failure(fault, coded=wants_codes(request)))
        span.end(error)
        _log(request, piece, error, time.monotonic() - began)

    def _end(self, sender: Any, last: Any) -> None:
        """End a request with its last response."""
        try:
            sender.send(last, flags=FINAL)
        except Exception:
            log.exception("the last response of a request could not be sent")
            self.answer_lost()

    async def _watch(self) -> None:
        """Give up the requests whose clients did."""
        while True:
            await asyncio.sleep(max(POLL_SECONDS, POLL_SECONDS_PER_REQUEST * len(self.tasks)))
            for task, sender in list(self.tasks.items()):
                if not task.done() and is_cancelled(sender):
                    self._give_up(task)
                await asyncio.sleep(0)


def _log(request: Any, piece: Piece | None, error: str | None, seconds: float) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    facts = fields(
        request_id=parameters(request).get(REQUEST_ID) or request.request_id() or None,
        seconds=round(seconds, 6),
        prompt_tokens=piece and piece.num_input_tokens,
        answer_tokens=piece and piece.num_output_tokens,
        tiles=piece and piece.num_tiles,
        finish_reason=(piece and piece.reason) or None,
        error=error,
    )
    log.info("answered" if error is None else "not answered", extra=facts)


def _response(piece: Piece) -> Any:
    outputs = {
        "text_output": texts(piece.text),
        "finish_reason": texts(piece.reason),
        "num_input_tokens": np.array([piece.num_input_tokens], np.int32),
        "num_output_tokens": np.array([piece.num_output_tokens], np.int32),
    }
    if piece.num_cached_tokens is not None:
        outputs[CACHED] = np.array([piece.num_cached_tokens], np.int32)
    if piece.tokens.ids:
        outputs["output_ids"] = np.array(piece.tokens.ids, np.int32)
        outputs["output_log_probs"] = np.array(piece.tokens.log_probs, np.float32)
    return response(outputs)
