"""The inner models over gRPC, asked without the project's client."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nvlm_trt.triton_streams import is_last

Array = npt.NDArray[Any]
Answer = tuple[Any, InferenceServerException | None]


def tensor(name: str, values: Array) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def decoding(ids: Array, length: int = 8, **more: Array) -> dict[str, Array]:
    """Inputs of `tensorrt_llm`."""
    return {
        "input_ids": np.asarray(ids, np.int32).reshape(1, -1),
        "input_lengths": np.array([[np.size(ids)]], np.int32),
        "request_output_len": np.array([[length]], np.int32),
        **more,
    }


class Call:
    """One call of a decoupled model on a stream of its own; its answers come while others run."""

    def __init__(
        self,
        address: str,
        model: str,
        inputs: Mapping[str, Array],
        request_id: str = "",
        parameters: dict[str, bool] | None = None,
    ) -> None:
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._first: Answer | None = None
        self._client = triton.InferenceServerClient(address)
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        self._client.async_stream_infer(
            model,
            [tensor(name, values) for name, values in inputs.items()],
            request_id=request_id,
            enable_empty_final_response=True,
            parameters=parameters,
        )

    def first(self) -> None:
        """Wait for something of the answer."""
        self._first = self._answers.get(timeout=60)

    def ids(self) -> list[int]:
        """The whole answer of `tensorrt_llm`.

        Raises:
            InferenceServerException: it is an error.
        """
        found: list[int] = []
        for result in self._results():
            values = result.as_numpy("output_ids")
            if values is not None:
                count = int(result.as_numpy("sequence_length").item())
                found += values[0, 0, :count].tolist()
        return found

    def end(self) -> int:
        """Tokens of the whole answer of `nvlm`, as far as it says how many.

        Raises:
            InferenceServerException: it is an error.
        """
        counts = [result.as_numpy("num_output_tokens") for result in self._results()]
        return max(int(count.item()) for count in counts if count is not None)

    def _results(self) -> Iterator[Any]:
        """What comes, to the last response; then the stream is ended."""
        try:
            while True:
                result, error = self._first or self._answers.get(timeout=60)
                self._first = None
                if error is not None:
                    raise error
                yield result
                if is_last(result):
                    return
        finally:
            self._client.stop_stream()
            self._client.close()
