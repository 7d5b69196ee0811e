"""What the caller of the engine holds of a request that it has submitted."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from nvlm_trt.decoder.request import FinishReason, TokenEvent
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.errors import ServerError


class RequestHandle:
    """A submitted request: its events, in order, for one reader.

    Iterating blocks until the request ends; the last event has a finish_reason.

    Args:
        request_id: Whose.
        cancel: Ends the request.
        stages: When it reached what.

    Attributes:
        request_id: Whose.
        stages: When it reached what; complete once its last event has come.
    """

    def __init__(self, request_id: str, cancel: Callable[[], None], stages: Stages) -> None:
        self.request_id = request_id
        self.stages = stages
        self._cancel = cancel
        self._events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()

    def put(self, event: TokenEvent) -> None:
        """Take an event from the worker."""
        self._events.put(event)

    def cancel(self) -> None:
        """End the request; while a step computes it beside others, with that step."""
        self._cancel()

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
