"""The cpu target's `tensorrt_llm`: the C++ backend's tensors in front of the decoder engine.

Everything that is sent, and every question whether a client is still there, goes through one thread: the Python
backend of tritonserver 2.51 can deadlock when several threads of a process talk to the server at once.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from nvlm_trt.decoder.engine import CheckedRequest
from nvlm_trt.decoder.request import DecodeRequest, EventSink, TokenEvent
from nvlm_trt.decoder.request_handle import RequestHandle
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.decoder.status import EngineStatus
from nvlm_trt.errors import ServerError
from nvlm_trt.serving.decoder_tensors import STOP
from nvlm_trt.serving.faults import UnavailableError
from nvlm_trt.serving.heartbeat import Work
from nvlm_trt.serving.llm_request import parse_llm_request
from nvlm_trt.serving.llm_trace import trace_decoding
from nvlm_trt.serving.requests import Tensors, parse_flag
from nvlm_trt.tracing import UNTRACED, Span

POLL_SECONDS: Final = 0.05
"""How often it is asked whether clients are still there; a cancelled request ends at the next token after that."""

STATUS_SECONDS: Final = 0.25
"""How often the engine's status is told at most: each figure that has changed costs a call to the server."""

log = logging.getLogger(__name__)


class Channel(Protocol):
    """The way back to one client; its methods are called from one thread only."""

    def send(self, ids: list[int], *, final: bool, log_probs: Sequence[float] = (), cached: int = 0) -> None:
        """Send tokens, none at all in a last call where none are left; the last call has `final`.

        `cached` is the number of the prompt's tokens that the KV cache held already.
        """

    def fail(self, error: Exception) -> None:
        """Send an error and end."""

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up."""


class Engine(Protocol):
    """What is needed of `nvlm_trt.decoder.engine.DecoderEngine`."""

    def check(self, request: DecodeRequest) -> CheckedRequest:
        """Check a request and make it ready."""

    def submit(self, request: CheckedRequest, sink: EventSink | None = None) -> RequestHandle:
        """Queue a request."""

    def cancel(self, request_id: str) -> None:
        """End a request."""

    def status(self) -> EngineStatus:
        """How busy it is."""


@dataclass(slots=True)
class Job:
    """A request on its way.

    Attributes:
        client_id: The id that the client gave, by which it can stop the request; may be empty.
        channel: The way back.
        span: Of the request.
        streaming: Whether tokens are sent as they come.
        cancelled: Whether the engine was told to end it: the client gave it up, or it is `broken`.
        broken: Whether some of its tokens could not be sent.
        ids: Tokens not sent yet.
        log_probs: Theirs, where they are asked for.
        tokens: Tokens so far.
        stages: When it reached what; None before it is queued.
    """

    client_id: str
    channel: Channel
    span: Span = UNTRACED
    streaming: bool = False
    cancelled: bool = False
    broken: bool = False
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    tokens: int = 0
    stages: Stages | None = None

    @property
    def cached(self) -> int:
        """Tokens of the prompt that the KV cache held; they do not change any more once a token is there."""
        return 0 if self.stages is None else self.stages.reused_tokens


class LlmServer:
    """Feeds the engine and sends what comes out.

    Args:
        engine: The decoder engine.
        vocab_size: Rows of its embedding.
        report: Called with the engine's status when it has changed, by the thread that sends.
        observe: Called, by the same, with the stages of each request that has ended.
        lost: Called, by the same, when a last response could not be sent: its request never ends then.

    Attributes:
        sending: What the thread that sends is at; a send that a dead server holds never ends.
    """

    def __init__(
        self,
        engine: Engine,
        vocab_size: int,
        report: Callable[[EngineStatus], None] | None = None,
        observe: Callable[[Stages], None] | None = None,
        *,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._report = report
        self._observe = observe
        self._lost = lost
        self._reported: tuple[float, EngineStatus] | None = None
        self._numbers = itertools.count()
        self._jobs: dict[str, Job] = {}
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._polled = time.monotonic()
        self.sending = Work()
        self._thread = threading.Thread(target=self._run, name="nvlm-sender", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Requests on their way."""
        return len(self._jobs)

    def submit(self, tensors: Tensors, client_id: str, channel: Channel, span: Span = UNTRACED) -> None:
        """Take a request; never raises, every outcome goes through the channel.

        Args:
            tensors: The request's tensors, by the C++ backend's names; they may be reused after the call.
            client_id: The client's id of the request.
            channel: The way back.
            span: Of the request, in which its stages become spans.
        """
        job = Job(client_id, channel, span)
        try:
            if parse_flag(tensors, STOP):
                self._outbox.put(lambda: self._stop(client_id, channel))
                return
            name = str(next(self._numbers))
            request = parse_llm_request(tensors, name, self._vocab_size)
            checked = self._engine.check(request.decode)  # here, where it keeps nobody's tokens waiting
            job.streaming = request.streaming
            self._outbox.put(lambda: self._start(name, job, checked))
        except Exception as error:
            refusal = error
            self._outbox.put(lambda: self._end(lambda: channel.fail(refusal)))

    def close(self) -> None:
        """Send what is waiting and end the thread."""
        self._outbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                action = self._outbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                action = self._flush
            if action is None:
                return
            try:
                with self.sending.one():
                    action()
                    if self._outbox.empty():
                        self._flush()
                    self._poll()
            except Exception:  # nor may one end the thread that serves the others
                log.exception("sending failed")

    def _start(self, name: str, job: Job, request: CheckedRequest) -> None:
        self._jobs[name] = job
        try:
            handle = self._engine.submit(request, lambda event: self._outbox.put(lambda: self._take(name, event)))
            job.stages = handle.stages
        except Exception as error:
            del self._jobs[name]
            refusal = error
            self._end(lambda: job.channel.fail(refusal))

    def _stop(self, client_id: str, channel: Channel) -> None:
        """End the client's requests of this id; an unknown id is nothing to do."""
        for name, job in self._jobs.items():
            if client_id and job.client_id == client_id:
                self._cancel(name, job)
        self._end(lambda: channel.send([], final=True))

    def _cancel(self, name: str, job: Job) -> None:
        job.cancelled = True
        self._engine.cancel(name)

    def _poll(self) -> None:
        if time.monotonic() - self._polled < POLL_SECONDS:
            return
        self._polled = time.monotonic()
        for name, job in self._jobs.items():
            if not job.cancelled and job.channel.is_cancelled():
                self._cancel(name, job)
        self._tell_status()

    def _tell_status(self) -> None:
        now, last = time.monotonic(), self._reported
        if self._report is None or (last is not None and now - last[0] < STATUS_SECONDS):
            return
        status = self._engine.status()
        if last is None or status != last[1]:
            self._report(status)
        self._reported = now, status

    def _take(self, name: str, event: TokenEvent) -> None:
        job = self._jobs[name]
        if event.token is not None:
            job.ids.append(event.token)
            if event.log_prob is not None:
                job.log_probs.append(event.log_prob)
            job.tokens += 1
        if event.finish_reason is None:
            return
        del self._jobs[name]
        ended = time.monotonic()  # before who asked can have the end
        self._end(lambda: self._send_last(job, event))
        self._note_end(job, event, ended)

    def _send_last(self, job: Job, event: TokenEvent) -> None:
        if event.finish_reason == "error":
            job.channel.fail(ServerError(event.error or "the decoder failed"))
        elif job.broken:  # an answer with a gap must not end as a whole one
            job.channel.fail(UnavailableError("a part of the answer could not be sent", fix="send the request again"))
        elif event.finish_reason == "cancelled" and not job.cancelled:
            job.channel.fail(UnavailableError("the decoder is closing", fix="send the request again"))
        else:
            job.channel.send(job.ids, final=True, log_probs=job.log_probs, cached=job.cached)

    def _end(self, send: Callable[[], None]) -> None:
        """Send the last response of a request; nothing more can be sent after it, whether it went or not."""
        try:
            send()
        except Exception:
            log.exception("the last response of a request could not be sent")
            if self._lost is not None:
                self._lost()

    def _note_end(self, job: Job, event: TokenEvent, ended: float) -> None:
        if job.stages is None:
            return
        try:
            trace_decoding(job.span, job.stages, job.tokens, event.finish_reason or "error", ended)
            if self._observe is not None:
                self._observe(job.stages)
        except Exception:  # a figure must not hold up what waits to be sent
            log.exception("noting the end of a request failed")

    def _flush(self) -> None:
        """Send the tokens that streams have; under load several go together."""
        for name, job in self._jobs.items():
            if job.streaming and job.ids and not job.cancelled:
                ids, log_probs, job.ids, job.log_probs = job.ids, job.log_probs, [], []
                try:
                    job.channel.send(ids, final=False, log_probs=log_probs, cached=job.cached)
                except Exception:  # one stream must not hold up the tokens of the others
                    log.exception("sending failed")
                    job.broken = True
                    self._cancel(name, job)


def padded(ids: list[int], pad: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], int]:
    """Tokens as output_ids int32 [1, 1, n] with n >= 1, and their number: an ensemble carries no empty tensor."""
    return np.array([[ids or [pad]]], dtype=np.int32), len(ids)
