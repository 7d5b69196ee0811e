"""The decoder engine of the cpu target: one worker thread, any number of callers."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.request import DecodeRequest, EventSink, FinishReason, TokenEvent, check_request
from nvlm_trt.decoder.scheduler import ChunkLimits, Generation, Scheduler
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.errors import RequestError, ServerError

IDLE_SECONDS = 0.5
"""How long an idle worker sleeps between heartbeats."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """What the engine needs of a compiled decoder."""

    def run(self, parts: Sequence[StepPart]) -> npt.NDArray[np.float32]:
        """Logits float32 [parts that want logits, vocab_size] of one step."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How busy an engine is: requests in the batch and in the queue, cache blocks free and in all."""

    running: int
    waiting: int
    free_blocks: int
    num_blocks: int


class RequestHandle:
    """A submitted request: its events, in order, for one reader.

    Iterating blocks until the request ends; the last event has a finish_reason.
    """

    def __init__(self, engine: DecoderEngine, request_id: str) -> None:
        self.request_id = request_id
        self._engine = engine
        self._events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()

    def put(self, event: TokenEvent) -> None:
        """Take an event from the worker."""
        self._events.put(event)

    def cancel(self) -> None:
        """End the request at the next token boundary."""
        self._engine.cancel(self.request_id)

    def __iter__(self) -> Iterator[TokenEvent]:
        while True:
            event = self._events.get()
            yield event
            if event.finish_reason is not None:
                return

    def result(self) -> tuple[list[int], FinishReason]:
        """Wait for the end.

        Returns:
            The tokens of the answer, and why it ended.

        Raises:
            ServerError: the request ended in a fault.
        """
        tokens: list[int] = []
        reason: FinishReason = "error"
        for event in self:
            if event.token is not None:
                tokens.append(event.token)
            if event.finish_reason == "error":
                raise ServerError(event.error or "the decoder failed")
            reason = event.finish_reason or reason
        return tokens, reason


class DecoderEngine:
    """Serves requests with continuous batching. All methods may be called from any thread.

    A fault in a request fails that request; a fault in a step fails the requests in that step; the engine lives on.

    Args:
        config: The engine's shapes and limits.
        session: The compiled decoder; only the worker touches it.
        num_blocks: Blocks of the session's KV cache.
        limits: Prompt tokens a step.

    Attributes:
        config: The engine's shapes and limits.
        heartbeat: `time.monotonic()` of the worker's last turn: a supervisor calls the engine hung when it stands still
            for longer than the slowest step (an idle worker turns twice a second).
    """

    def __init__(
        self, config: DecoderEngineConfig, session: Session, num_blocks: int, *, limits: ChunkLimits | None = None
    ) -> None:
        self.config = config
        self.heartbeat = time.monotonic()
        self._session = session
        self._blocks = BlockManager(num_blocks, config.block_size)
        self._scheduler = Scheduler(self._blocks, config.max_batch_size, limits or ChunkLimits())
        self._wake = threading.Condition()
        self._arrived: list[Generation] = []
        self._known: dict[str, Generation] = {}
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="nvlm-decoder", daemon=True)
        self._worker.start()

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        threads: int = 0,
        cache_tokens: int | None = None,
        limits: ChunkLimits | None = None,
    ) -> DecoderEngine:
        """Load what `build_decoder_cpu` wrote.

        Args:
            directory: ``engines/<recipe>/decoder/cpu``.
            threads: Threads to compute with; 0 leaves it to OpenVINO.
            cache_tokens: Tokens in the KV cache; None has room for max_batch_size requests of max_seq_len. A block
                takes memory when it is first used.
            limits: Prompt tokens a step.

        Raises:
            EngineError: the directory is no compiled decoder of this version.
        """
        config = DecoderEngineConfig.read(directory)
        whole = -(-config.max_seq_len // config.block_size)
        num_blocks = config.max_batch_size * whole if cache_tokens is None else -(-cache_tokens // config.block_size)
        return cls(config, DecoderSession(directory, config, num_blocks, threads), num_blocks, limits=limits)

    def submit(self, request: DecodeRequest, sink: EventSink | None = None) -> RequestHandle:
        """Queue a request.

        Args:
            request: The request; its arrays must not change until it ends.
            sink: Where its events go; None sends them to the handle.

        Raises:
            RequestError: the request cannot be served, or its id is in use; nothing was queued.
            ServerError: the engine is closed.
        """
        check_request(request, self.config, self._blocks.num_blocks * self.config.block_size)
        handle = RequestHandle(self, request.request_id)
        generation = Generation(request, sink or handle.put, self.config.vocab_size)
        with self._wake:
            if self._closing:
                raise ServerError("the decoder engine is closed")
            if request.request_id in self._known:
                raise RequestError("the request id is in use", seen=request.request_id, fix="use another")
            self._known[request.request_id] = generation
            self._arrived.append(generation)
            self._wake.notify()
        return handle

    def cancel(self, request_id: str) -> None:
        """End a request at the next token boundary; one that ended already is left alone."""
        with self._wake:
            generation = self._known.get(request_id)
            if generation is not None:
                generation.cancelled = True
                self._wake.notify()

    def status(self) -> EngineStatus:
        """How busy the engine is."""
        with self._wake:
            waiting = self._scheduler.num_waiting + len(self._arrived)
            return EngineStatus(self._scheduler.num_running, waiting, self._blocks.num_free, self._blocks.num_blocks)

    def close(self) -> None:
        """End every request ("cancelled") and the worker; may be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def __enter__(self) -> DecoderEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        reason: FinishReason = "error"
        try:
            while self._collect():
                step = self._scheduler.plan()
                if step:
                    self._run(step)
            reason = "cancelled"
        finally:
            self._end_all(reason)

    def _end_all(self, reason: FinishReason) -> None:
        """Take no more requests, and end those that are there."""
        with self._wake:
            self._closing = True
            for generation in self._arrived:
                self._scheduler.add(generation)
            self._arrived.clear()
        error = "the decoder engine ended" if reason == "error" else None
        for generation in self._scheduler.generations:
            self._end(generation, TokenEvent(generation.request.request_id, None, reason, error))

    def _collect(self) -> bool:
        """Take in arrivals and cancellations, sleeping while there is nothing to do; False when closing."""
        with self._wake:
            if not self._arrived and not self._scheduler.generations and not self._closing:
                self._wake.wait(IDLE_SECONDS)
            self.heartbeat = time.monotonic()
            for generation in self._arrived:
                self._scheduler.add(generation)
            self._arrived.clear()
            closing = self._closing
        for generation in self._scheduler.generations:
            if generation.cancelled:
                self._end(generation, TokenEvent(generation.request.request_id, None, "cancelled"))
        return not closing

    def _run(self, step: Sequence[tuple[Generation, StepPart]]) -> None:
        """Run one step and hand out its tokens."""
        try:
            logits = iter(self._session.run([part for _, part in step]))
        except Exception:  # whatever the runtime raises must not end the worker
            log.exception("a decoder step failed")
            for generation, _ in step:
                name = generation.request.request_id
                self._end(generation, TokenEvent(name, None, "error", "the decoder failed in this step"))
            return
        for generation, part in step:
            self._advance(generation, part, next(logits) if part.wants_logits else None)

    def _advance(self, generation: Generation, part: StepPart, logits: npt.NDArray[np.float32] | None) -> None:
        try:
            event = generation.advance(part, logits)
        except Exception:  # a fault in sampling is this request's alone
            log.exception("choosing a token failed")
            event = TokenEvent(generation.request.request_id, None, "error", "choosing a token failed")
        if event is None:
            return
        if event.finish_reason is not None:
            self._end(generation, event)
        elif not self._send(generation, event):
            self._end(generation, TokenEvent(event.request_id, None, "cancelled"))

    def _end(self, generation: Generation, event: TokenEvent) -> None:
        """Free everything that the request holds, then tell its caller."""
        with self._wake:
            self._scheduler.remove(generation)
            del self._known[generation.request.request_id]
        self._send(generation, event)

    def _send(self, generation: Generation, event: TokenEvent) -> bool:
        try:
            generation.sink(event)
        except Exception:  # the caller's sink is the caller's code
            log.exception("the sink of a request failed")
            return False
        return True
