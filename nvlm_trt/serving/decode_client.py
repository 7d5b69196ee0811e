"""The orchestrator's way to `tensorrt_llm`: the server's own gRPC port.

Triton offers Python models BLS for that, but on 2.51 (and in the code of later releases: ResponseIterator::Next and
Stub::GetResponseIterator of python_backend) its iterator of decoupled responses waits for the interpreter lock while it
holds a lock that deliveries need: a few dozen requests at once deadlock the process. BLS passes cancellation on only
from 25.04. A gRPC stream has neither fault.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nvlm_trt.loopback import DIRECT, MESSAGES
from nvlm_trt.serving.decoder_tensors import CACHED_TOKENS, LOG_PROBS, OUTPUTS, STOP, Tensor
from nvlm_trt.serving.faults import UnavailableError, error_of
from nvlm_trt.serving.fields import TRACEPARENT
from nvlm_trt.serving.orchestrator import Decoded
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.room import Room
from nvlm_trt.triton_streams import Ask, Connection, ResponseStream, is_last, tell

GRPC_ADDRESS: Final = "NVLM_TRT_GRPC_ADDRESS"
"""Environment variable with the server's own address; the server that nvlm-trt starts sets it."""

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"
DECODER: Final = "tensorrt_llm"
VISION: Final = "vision_encoder"

CACHED: Final = CACHED_TOKENS[0]

STOP_AFTER_SECONDS: Final = 0.05
"""From giving up an ensemble's stream to telling its models: a decoder that the ensemble starts just now knows the id
then."""

MAX_PIXEL_BYTES: Final = 512 << 20
"""Pixels that are with the vision encoder at once: that of the cpu target holds them in shared memory, and to encode
them in its own; on GPUs, where an image that was given up is encoded all the same, clients that leave must not pile
them up. It is 891 tiles of 448 pixels."""

Array = npt.NDArray[Any]

STOP_DECODER: Final[Mapping[str, Array]] = {
    "input_lengths": np.ones((1, 1), np.int32),
    "request_output_len": np.ones((1, 1), np.int32),
    STOP: np.ones((1, 1), np.bool_),
}
"""Inputs that end the request of the same id; the first two are required of every request."""


class DecodeClient:
    """Starts decodings. Belongs to the event loop in which it is made.

    Args:
        tile_size: Side of a tile in pixels, where the vision encoder can be told to stop; None where it cannot.
        tells_cached: Whether the decoder tells how many tokens of a prompt its cache held.
        max_pixel_bytes: Pixels that are with the vision encoder at most; a request of more is sent alone.
    """

    def __init__(
        self, tile_size: int | None = None, *, tells_cached: bool = False, max_pixel_bytes: int = MAX_PIXEL_BYTES
    ) -> None:
        self._room = Room(max_pixel_bytes)
        self._stop_vision: Mapping[str, Array] | None = None
        if tile_size is not None:
            no_tiles = np.zeros((0, tile_size, tile_size, 3), np.uint8)
            self._stop_vision = {TILES: no_tiles, STOP: np.ones(1, np.bool_)}
        self._connection = Connection(os.environ.get(GRPC_ADDRESS, DEFAULT_ADDRESS), (*MESSAGES, DIRECT))
        self._decoding = functools.partial(GrpcDecoding, self._connection, with_cached=tells_cached)
        self._numbers = itertools.count()
        self._prefix = f"nvlm-{secrets.token_hex(8)}"  # nobody else may guess an id, and stop what has it

    def start(self, inputs: Mapping[str, Array], traceparent: str | None = None) -> GrpcDecoding:
        """Start one decoding of `tensorrt_llm`.

        Args:
            inputs: Its inputs, with the batch dimension.
            traceparent: The span that asks.
        """
        request_id = self._next_id()
        stop = functools.partial(self._end_decoding, request_id)
        return self._decoding(DECODER, request_id, inputs, stops=[stop], traceparent=traceparent)

    async def start_ensemble(
        self, ensemble: str, inputs: Mapping[str, Array], traceparent: str | None = None
    ) -> GrpcDecoding:
        """Start one decoding by an ensemble whose last step is `tensorrt_llm`, as soon as there is room for its pixels.

        It waits here and not in the vision encoder, whose one thread takes requests and what stops them in their order.
        Its pixels are held until the first response, which says that they are encoded, or until the ensemble has ended.

        An ensemble cannot be asked to end, nor does it tell a step that runs that its client has gone, so the vision
        encoder and the decoder are told by themselves: they know the request by the id that the ensemble passes on.

        Args:
            ensemble: Its name.
            inputs: Its inputs, tiles among them.
            traceparent: The span that asks.
        """
        request_id = self._next_id()
        await self._room.take(request_id, inputs[TILES].nbytes)

        def encoded() -> None:
            self._room.give(request_id)

        try:
            return self._decoding(
                ensemble,
                request_id,
                inputs,
                on_response=encoded,
                stops=[functools.partial(end, request_id) for end in (self._end_encoding, self._end_decoding)],
                stop_after=STOP_AFTER_SECONDS,
                traceparent=traceparent,
            )
        except Exception:
            encoded()
            raise

    async def close(self) -> None:
        """Close the connection, once what was given up has ended, or ten seconds later."""
        await self._connection.close()

    def _next_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    async def _end_encoding(self, request_id: str) -> None:
        if self._stop_vision is not None:
            inputs = [_input(name, values) for name, values in self._stop_vision.items()]
            await self._connection.client.infer(VISION, inputs, request_id=request_id)

    async def _end_decoding(self, request_id: str) -> None:
        await tell(self._connection, _request(DECODER, request_id, STOP_DECODER))


class GrpcDecoding:
    """One answer in the making, on a stream of its own.

    Args:
        connection: The connection.
        model: The model to ask.
        request_id: Its id of the request.
        inputs: Its inputs.
        with_cached: Whether to ask how many tokens of the prompt the cache held.
        on_response: Called with each response, and at the end.
        stops: Ask models to end it, where it is stopped before its end.
        stop_after: Seconds from that to asking them.
        traceparent: The span that asks.
    """

    def __init__(
        self,
        connection: Connection,
        model: str,
        request_id: str,
        inputs: Mapping[str, Array],
        *,
        with_cached: bool = False,
        on_response: Callable[[], None] | None = None,
        stops: Sequence[Ask] = (),
        stop_after: float = 0.0,
        traceparent: str | None = None,
    ) -> None:
        self._with_cached = with_cached
        self._with_log_probs = bool(inputs["return_log_probs"].item()) if "return_log_probs" in inputs else False
        request = _request(model, request_id, inputs, log_probs=self._with_log_probs, cached=with_cached)
        request["parameters"] = {} if traceparent is None else {TRACEPARENT: traceparent}
        self._stops = stops
        self._stop_after = stop_after
        self._stream = ResponseStream(connection, request, on_response)

    async def __aiter__(self) -> AsyncIterator[Decoded]:
        try:
            while (result := await self._stream.read()) is not None:
                last, ids = is_last(result), result.as_numpy("output_ids")
                if ids is not None:
                    length = int(result.as_numpy("sequence_length").item())
                    log_probs = result.as_numpy("output_log_probs") if self._with_log_probs and length else None
                    cached = int(result.as_numpy(CACHED).item()) if self._with_cached else None
                    # Of a stream a backend may give those of all tokens so far: the last ones are of those that came.
                    yield Decoded(
                        ids[0, 0, :length].tolist(),
                        () if log_probs is None else log_probs[0, 0, -length:].tolist(),
                        last=last,
                        cached=cached,
                    )
                if last:
                    return
        except grpc.RpcError as error:
            raise error_of(error.code().name, str(error.details())) from None
        except InferenceServerException as error:
            raise error_of(str(error.status() or "").removeprefix("StatusCode."), str(error.message())) from None
        raise UnavailableError("the decoder went away", fix="send the request again")

    async def stop(self) -> None:
        """End the decoding, if it has not ended."""
        self._stream.give_up(asks=self._stops, after=self._stop_after)


def _request(
    model: str, request_id: str, inputs: Mapping[str, Array], *, log_probs: bool = False, cached: bool = False
) -> dict[str, Any]:
    return {
        "model_name": model,
        "request_id": request_id,
        "inputs": [_input(name, values) for name, values in inputs.items()],
        "outputs": _wanted(log_probs=log_probs, cached=cached),
    }


@functools.cache
def _wanted(*, log_probs: bool, cached: bool) -> Sequence[triton.InferRequestedOutput]:
    """The outputs to ask for, each by name: the C++ backend has twenty more, which would all be sent."""
    asked: tuple[Tensor, ...] = (*OUTPUTS, *(LOG_PROBS if log_probs else ()), *((CACHED_TOKENS,) if cached else ()))
    return [triton.InferRequestedOutput(name) for name, _, _ in asked]


def _input(name: str, values: Array) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(values))
    return tensor
