"""The cpu target's `vision_encoder`: requests come in, each is answered as soon as its own rows are there.

Everything that is sent, and every figure for the metrics port, goes through one thread, which is not the one that
encodes: the Python backend of tritonserver 2.51 can deadlock when several threads of a process talk to the server at
once, and what the cache answers must not wait for a tile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nvlm_trt.serving.faults import CancelledByClientError, fault_of
from nvlm_trt.serving.heartbeat import Work
from nvlm_trt.tracing import UNTRACED, Span
from nvlm_trt.vision.cache import VisionCacheStatus
from nvlm_trt.vision.encoder import GiveUp

Tiles = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class Channel(Protocol):
    """The way back to one request; its methods are called from one thread only."""

    def send(self, rows: Rows) -> None:
        """Send rows float32 [n, tokens_per_tile, hidden] and end."""

    def fail(self, error: Exception) -> None:
        """Send an error and end."""


class Encoder(Protocol):
    """What is needed of `nvlm_trt.vision.encoder.TileEncoder`."""

    def submit(
        self, tiles: Tiles, done: Callable[[Rows | Exception], None], found: Callable[[int], None] | None = None
    ) -> GiveUp:
        """Queue tiles uint8 [n, s, s, 3].

        `found` is called with the number of those that are known, then `done` with the rows or what went wrong.

        Returns:
            Gives the request up; whether it was in time, so that `done` is not called any more.
        """

    def status(self) -> VisionCacheStatus:
        """Of the cache: what it did, and what it holds."""

    def close(self) -> None:
        """End what waits."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A request.

    Attributes:
        client_id: The id that the client gave, by which it can stop the request; may be empty.
        channel: The way back.
        span: Of the request.
        came: When it came.
        give_up: Of the encoder; None before it has the request.
    """

    client_id: str
    channel: Channel
    span: Span
    came: float
    give_up: GiveUp | None = None


_Answer: TypeAlias = tuple[_Asked, Rows | Exception]
"""A request, and what there is to send."""


class VisionServer:
    """Feeds the encoder and sends what comes out.

    Requests are taken as they come, however many wait, so that one that stops another is never held up; who sends them
    sees to it that they are not too many (`nvlm_trt.serving.decode_client`).

    Args:
        encoder: The vision encoder.
        report: Called with the cache's figures after each answer.
        observe: Called with the seconds from each request to its rows.
        lost: Called when an answer could not be sent: its request never ends then.

    Attributes:
        sending: What the thread that sends is at; a send that a dead server holds never ends.
    """

    def __init__(
        self,
        encoder: Encoder,
        report: Callable[[VisionCacheStatus], None],
        *,
        observe: Callable[[float], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._encoder = encoder
        self._report = report
        self._observe = observe
        self._lost = lost
        self._lock = threading.Lock()
        self._under_way: list[_Asked] = []
        self.sending = Work()
        self._outbox: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="nvlm-vision-sender", daemon=True)
        self._thread.start()

    def submit(self, tiles: Tiles, channel: Channel, span: Span = UNTRACED, *, client_id: str = "") -> None:
        """Take a request; never waits nor raises, every outcome goes through the channel.

        Args:
            tiles: uint8 [n, s, s, 3]; they may be reused after the call.
            channel: The way back.
            span: Of the request; ends with it.
            client_id: The client's id of the request.
        """
        asked = _Asked(client_id, channel, span, time.monotonic())
        span.note({"nvlm.tiles": len(tiles)})
        with self._lock:
            self._under_way.append(asked)
        try:
            asked.give_up = self._encoder.submit(
                tiles,
                lambda outcome: self._outbox.put((asked, outcome)),
                lambda known: span.note({"nvlm.tiles_cached": known}),
            )
        except Exception as error:
            self._outbox.put((asked, error))

    def stop(self, client_id: str) -> None:
        """End the requests of this id; an unknown id is nothing to do. Called by the thread that submits."""
        with self._lock:
            concerned = [asked for asked in self._under_way if client_id and asked.client_id == client_id]
        for asked in concerned:
            if asked.give_up is not None and asked.give_up():
                self._outbox.put((asked, CancelledByClientError("the request was cancelled")))

    def close(self) -> None:
        """End what waits, send what is to be sent, and end the thread."""
        self._encoder.close()
        self._outbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (answer := self._outbox.get()) is not None:
            asked, outcome = answer
            with self.sending.one():
                self._send(asked, outcome)
                try:
                    self._note_end(asked, outcome)
                except Exception:  # one request must not end the thread that serves the others
                    log.exception("noting the end of a request failed")
            with self._lock:
                self._under_way.remove(asked)

    def _send(self, asked: _Asked, outcome: Rows | Exception) -> None:
        try:
            if isinstance(outcome, Exception):
                asked.channel.fail(outcome)
            else:
                asked.channel.send(outcome)
        except Exception:  # nothing more can be sent after that
            log.exception("the answer to a request could not be sent")
            if self._lost is not None:
                self._lost()

    def _note_end(self, asked: _Asked, outcome: Rows | Exception) -> None:
        if isinstance(outcome, Exception):
            asked.span.end(fault_of(outcome).code)
        else:
            asked.span.end()
            if self._observe is not None:
                self._observe(time.monotonic() - asked.came)
        self._report(self._encoder.status())
