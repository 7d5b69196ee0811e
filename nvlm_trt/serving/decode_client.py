"""The orchestrator's way to `tensorrt_llm`: the server's own gRPC port.

Triton offers Python models BLS for that, but on 2.51 (and in the code of later releases) its iterator of decoupled
responses waits for the interpreter lock while it holds a lock that deliveries need: a few dozen requests at once
deadlock the process. BLS also passes no cancellation on. A gRPC stream has neither fault.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nvlm_trt.serving.faults import UnavailableError, error_of

GRPC_ADDRESS: Final = "NVLM_TRT_GRPC_ADDRESS"
"""Environment variable with the server's own address; the server that nvlm-trt starts sets it."""

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"
STATUS_HEADER: Final = {"triton_grpc_error": "true"}
"""Makes the server end a failed stream with a status code; without it only a message comes."""

Array = npt.NDArray[Any]


class DecodeClient:
    """Starts decodings. Belongs to the event loop in which it is made."""

    def __init__(self) -> None:
        self._client = triton.InferenceServerClient(os.environ.get(GRPC_ADDRESS, DEFAULT_ADDRESS))
        self._numbers = itertools.count()
        self._prefix = f"nvlm-{os.getpid()}"

    def start(self, inputs: Mapping[str, Array]) -> GrpcDecoding:
        """Start one decoding of `tensorrt_llm`.

        Args:
            inputs: Its inputs, with the batch dimension.
        """
        return GrpcDecoding(self._client, f"{self._prefix}-{next(self._numbers)}", inputs)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


class GrpcDecoding:
    """One answer in the making: a stream of its own, so that ending it ends the decoding."""

    def __init__(self, client: triton.InferenceServerClient, request_id: str, inputs: Mapping[str, Array]) -> None:
        self._request = {
            "model_name": "tensorrt_llm",
            "request_id": request_id,
            "inputs": [_input(name, values) for name, values in inputs.items()],
            "enable_empty_final_response": True,
        }
        self._ended = asyncio.Event()
        self._stream = client.stream_infer(self._requests(), headers=STATUS_HEADER)

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        try:
            async for result, error in self._stream:
                if error is not None:
                    raise error
                ids = result.as_numpy("output_ids")
                if ids is not None:
                    length = int(result.as_numpy("sequence_length").item())
                    yield ids[0, 0, :length].tolist()
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return
        except grpc.RpcError as error:
            raise error_of(error.code().name, str(error.details())) from None
        except InferenceServerException as error:
            raise error_of(str(error.status() or "").removeprefix("StatusCode."), str(error.message())) from None
        raise UnavailableError("the decoder went away", fix="send the request again")

    async def stop(self) -> None:
        """End the decoding, if it has not ended."""
        self._ended.set()
        self._stream.cancel()

    async def _requests(self) -> AsyncIterator[dict[str, object]]:
        yield self._request
        await self._ended.wait()  # the server may drop the last responses of a stream whose sending side has ended


def _input(name: str, values: Array) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(values))
    return tensor
