"""The decoder engine of the cpu target: one worker thread, any number of callers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.generation import Generation
from nvlm_trt.decoder.kv_blocks import BlockManager
from nvlm_trt.decoder.kv_memory import KvCacheSettings, memory_at_hand, num_blocks
from nvlm_trt.decoder.prefix import PrefixKeys
from nvlm_trt.decoder.request import DecodeRequest, EventSink, FinishReason, TokenEvent, check_request
from nvlm_trt.decoder.request_handle import RequestHandle
from nvlm_trt.decoder.scheduler import Scheduler, Step
from nvlm_trt.decoder.session_cpu import DecoderSession, compile_properties
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.decoder.status import EngineStatus
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.decoder.step_costs import ChunkLimits, StepCosts
from nvlm_trt.errors import RequestError, ServerError
from nvlm_trt.turns import Turns

IDLE_SECONDS = 0.5
"""How long an idle worker sleeps between heartbeats."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """What the engine needs of a compiled decoder."""

    def run(self, parts: Sequence[StepPart], given_up: Callable[[], bool]) -> npt.NDArray[np.float32]:
        """Logits float32 [parts that want logits, vocab_size] of one step; raises where it was given up before."""

    def cancel(self) -> None:
        """End the step that runs, from another thread: its `run` raises; nothing to do where none runs."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the engine can serve, ready to be queued, once.

    Attributes:
        request: The request.
        keys: Names of its blocks; None where no block is shared.
    """

    request: DecodeRequest
    keys: PrefixKeys | None


class DecoderEngine:
    """Serves requests with continuous batching. All methods may be called from any thread.

    A fault in a request fails that request; a fault in a step fails the requests in that step; the engine lives on.

    Args:
        config: The engine's shapes and limits.
        session: The compiled decoder; only the worker touches it.
        num_blocks: Blocks of the session's KV cache.
        reuse: Share blocks among requests that begin alike, and keep them for requests to come.
        limits: Prompt tokens a step.
        clock: Seconds, from any beginning; steps are measured with it.
        turns: Where steps take turns with a vision encoder; None where there is none.

    Attributes:
        config: The engine's shapes and limits.
        heartbeat: `time.monotonic()` of the worker's last turn: a supervisor calls the engine hung when it stands still
            for longer than the slowest step (an idle worker turns twice a second).
    """

    def __init__(
        self,
        config: DecoderEngineConfig,
        session: Session,
        num_blocks: int,
        *,
        reuse: bool = True,
        limits: ChunkLimits | None = None,
        clock: Callable[[], float] = time.perf_counter,
        turns: Turns | None = None,
    ) -> None:
        self.config = config
        self.heartbeat = time.monotonic()
        self._session = session
        self._reuse = reuse
        self._clock = clock
        self._turns = turns or Turns()
        self._blocks = BlockManager(num_blocks, config.block_size)
        self._costs = StepCosts(limits or ChunkLimits())
        self._scheduler = Scheduler(self._blocks, config.max_batch_size, self._costs)
        self._steps = self._answer_tokens = 0
        self._step_seconds = 0.0
        self._wake = threading.Condition()
        self._arrived: list[Generation] = []
        self._known: dict[str, Generation] = {}
        self._step: Step = ()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="nvlm-decoder", daemon=True)
        self._worker.start()

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        threads: int = 0,
        cache: KvCacheSettings | None = None,
        limits: ChunkLimits | None = None,
        turns: Turns | None = None,
    ) -> DecoderEngine:
        """Load what `build_decoder_cpu` wrote.

        Args:
            directory: ``engines/<recipe>/decoder/cpu``.
            threads: Threads to compute with; 0 leaves it to OpenVINO.
            cache: How the KV cache is run; None for the defaults.
            limits: Prompt tokens a step.
            turns: Where steps take turns with a vision encoder; None where there is none.

        Raises:
            EngineError: the directory is no compiled decoder of this version.
            DoesNotFitError: the cache's bound is impossible.
        """
        config, cache = DecoderEngineConfig.read(directory), cache or KvCacheSettings()
        dtype = compile_properties(ov.Core(), config.precision, threads, cache.precision)["KV_CACHE_PRECISION"]
        blocks = num_blocks(config, dtype, cache.mib, memory_at_hand(directory))
        log.info("a KV cache of %d tokens (%s)", blocks * config.block_size, dtype)
        session = DecoderSession(directory, config, blocks, threads, cache.precision)
        return cls(config, session, blocks, reuse=cache.reuse, limits=limits, turns=turns)

    def check(self, request: DecodeRequest) -> CheckedRequest:
        """Check a request and name its blocks: what takes longest of `submit`, for callers with a thread to spare.

        Raises:
            RequestError: the request cannot be served.
        """
        check_request(request, self.config, self._blocks.num_blocks * self.config.block_size)
        if not self._reuse:
            return CheckedRequest(request, None)
        config = self.config
        keys = PrefixKeys(request.input_ids, request.prompt_table, config.vocab_size, config.block_size)
        return CheckedRequest(request, keys)

    def submit(self, request: DecodeRequest | CheckedRequest, sink: EventSink | None = None) -> RequestHandle:
        """Queue a request.

        Args:
            request: The request; its arrays must not change until it ends.
            sink: Where its events go; None sends them to the handle.

        Raises:
            RequestError: the request cannot be served, or its id is in use; nothing was queued.
            ServerError: the engine is closed.
        """
        checked = request if isinstance(request, CheckedRequest) else self.check(request)
        name = checked.request.request_id
        stages = Stages(len(checked.request.input_ids))
        handle = RequestHandle(name, lambda: self.cancel(name), stages)
        generation = Generation(checked.request, sink or handle.put, self.config.vocab_size, checked.keys, stages)
        with self._wake:
            if self._closing:
                raise ServerError("the decoder engine is closed")
            if name in self._known:
                raise RequestError("the request id is in use", seen=name, fix="use another")
            self._known[name] = generation
            self._arrived.append(generation)
            self._wake.notify()
        return handle

    def cancel(self, request_id: str) -> None:
        """End a request; one that ended already is left alone.

        It ends at once where no step holds it. A step is ended only when all that it holds are cancelled: nobody else's
        work is lost, and a request beside others ends with the step.
        """
        with self._wake:
            generation = self._known.get(request_id)
            if generation is None:
                return
            generation.cancelled = True
            if all(generation is not each for each, _ in self._step):
                self._forget(generation)
            else:
                if self._given_up():
                    self._session.cancel()
                return
        self._send(generation, TokenEvent(request_id, None, "cancelled"))

    def status(self) -> EngineStatus:
        """How busy the engine is."""
        blocks, scheduler = self._blocks, self._scheduler
        with self._wake:
            return EngineStatus(
                running=scheduler.num_running,
                waiting=scheduler.num_waiting + len(self._arrived),
                num_blocks=blocks.num_blocks,
                free_blocks=blocks.num_free,
                cached_blocks=blocks.num_published,
                evicted_blocks=blocks.evictions,
                prompt_tokens=scheduler.prompt_tokens,
                reused_tokens=scheduler.reused_tokens,
                answer_tokens=self._answer_tokens,
                steps=self._steps,
                step_seconds=self._step_seconds,
            )

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
            while (step := self._next_step()) is not None:
                if step:
                    self._run(step)
            reason = "cancelled"
        finally:
            self._end_all(reason)

    def _end_all(self, reason: FinishReason) -> None:
        """Take no more requests, and end those that are there."""
        with self._wake:
            self._closing = True
            generations = (*self._scheduler.generations, *self._arrived)
        error = "the decoder engine ended" if reason == "error" else None
        for generation in generations:
            self._end(generation, TokenEvent(generation.name, None, reason, error))

    def _next_step(self) -> Step | None:
        """Take in arrivals, let go of what was given up, and plan; sleeps while there is nothing to do.

        Returns:
            What is to be run, which may be nothing; None when closing.
        """
        with self._wake:
            if not self._arrived and not self._scheduler.generations and not self._closing:
                self._wake.wait(IDLE_SECONDS)
            self.heartbeat = time.monotonic()
            if self._closing:
                return None
            for generation in self._arrived:
                self._scheduler.add(generation)
            self._arrived.clear()
            given_up = [generation for generation in self._scheduler.generations if generation.cancelled]
            for generation in given_up:
                self._forget(generation)
            self._step = step = self._scheduler.plan()
        for generation in given_up:
            self._send(generation, TokenEvent(generation.name, None, "cancelled"))
        return step

    def _run(self, step: Step) -> None:
        """Run one step and hand out its tokens."""
        for generation, _ in step:
            generation.stages.began = generation.stages.began or time.monotonic()
        try:
            self._compute(step)
        finally:
            with self._wake:
                self._step = ()

    def _compute(self, step: Step) -> None:
        try:
            with self._turns.taken() as waited:
                began = self._clock()
                logits = iter(self._session.run([part for _, part in step], self._given_up))
                seconds = self._clock() - began
        except Exception:  # whatever the runtime raises must not end the worker
            if self._given_up():  # it was ended, because nobody wants it
                return
            log.exception("a decoder step failed")
            for generation, _ in step:
                name = generation.name
                self._end(generation, TokenEvent(name, None, "error", "the decoder failed in this step"))
            return
        decoding = sum(generation.decoding for generation, _ in step)
        tokens = sum(len(part.input_ids) for _, part in step)
        self._costs.observe(decoding, tokens - decoding, seconds, waited)
        self._steps += 1
        self._step_seconds += seconds
        for generation, part in step:
            self._advance(generation, part, next(logits) if part.wants_logits else None)

    def _given_up(self) -> bool:
        """Whether everything in the step that runs is given up."""
        return all(generation.cancelled for generation, _ in self._step)

    def _advance(self, generation: Generation, part: StepPart, logits: npt.NDArray[np.float32] | None) -> None:
        try:
            event = generation.advance(part, logits)
            with self._wake:
                self._scheduler.wrote(generation)
        except Exception:  # a fault in sampling is this request's alone
            log.exception("choosing a token failed")
            event = TokenEvent(generation.name, None, "error", "choosing a token failed")
        if event is None:
            return
        generation.stages.first = generation.stages.first or time.monotonic()
        self._answer_tokens += event.token is not None
        if event.finish_reason is not None:
            self._end(generation, event)
        elif not self._send(generation, event):
            self._end(generation, TokenEvent(event.request_id, None, "cancelled"))

    def _end(self, generation: Generation, event: TokenEvent) -> None:
        """Free everything that the request holds, then tell its caller; whoever gave it up meanwhile was told."""
        with self._wake:
            if self._known.get(generation.name) is not generation:
                return
            self._forget(generation)
        self._send(generation, event)

    def _forget(self, generation: Generation) -> None:
        """Free everything that a request holds; called with the lock."""
        if generation in self._arrived:
            self._arrived.remove(generation)
        else:
            self._scheduler.remove(generation)
        del self._known[generation.name]

    def _send(self, generation: Generation, event: TokenEvent) -> bool:
        try:
            generation.sink(event)
        except Exception:  # the caller's sink is the caller's code
            log.exception("the sink of a request failed")
            return False
        return True
