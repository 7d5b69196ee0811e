"""Stands for a server of `nvlm`: real gRPC, answers by script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from nvlm_trt.serving.fields import CANCEL

Asked = Mapping[str, list[Any]]
"""The tensors of a request by name: texts, files' bytes, numbers."""

Script = Callable[[Asked], str]
"""From a request to its answer; raises `Refused` for a status."""

NUMBERS = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}


class Refused(Exception):  # noqa: N818 - what the server does
    """A status in place of an answer."""

    def __init__(self, code: grpc.StatusCode, message: str = "not now") -> None:
        super().__init__(message)
        self.code, self.message = code, message


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server on a free port, or on one that is given, for as long as its context lasts.

    Args:
        script: Says the answers.
        port: To listen on; 0 for any.
        hangs: Whether it hears no cancellation.
    """

    def __init__(self, script: Script | None = None, port: int = 0, *, hangs: bool = False) -> None:
        self.script = script or (lambda asked: f"re: {asked['text_input'][0]}")
        self._hangs = hangs
        self._under_way: dict[str, SimpleQueue[str | Refused]] = {}
        self.asked: list[Asked] = []
        self.most_at_a_time = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(grace=None).wait()

    def prompts(self) -> list[str]:
        """What was asked so far, in order of arrival."""
        return [str(asked["text_input"][0]) for asked in self.asked]

    def ModelStreamInfer(  # noqa: N802 - the protocol's name
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        """Answer the one request of a stream."""
        request = next(requests, None)
        if request is None:  # the client has gone before it said anything
            return
        if request.parameters[CANCEL].bool_param:
            if self._hangs:
                context.add_callback((gone := threading.Event()).set)
                gone.wait()
            elif (under_way := self._under_way.get(request.id)) is not None:
                under_way.put(Refused(grpc.StatusCode.CANCELLED, "cancelled"))
            yield _answer("")
            return
        asked = {
            tensor.name: _values(tensor, raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._now)
        came = self._under_way[request.id] = SimpleQueue()
        threading.Thread(target=self._play, args=(asked, came), daemon=True).start()
        answer = came.get()
        with self._lock:
            self._now -= 1
        if isinstance(answer, Refused):
            context.abort(answer.code, answer.message)
        yield _answer(answer)

    def _play(self, asked: Asked, came: SimpleQueue[str | Refused]) -> None:
        try:
            came.put(self.script(asked))
        except Refused as refused:
            came.put(refused)


def _values(tensor: Any, raw: bytes) -> list[Any]:
    if tensor.datatype != "BYTES":
        return list(np.frombuffer(raw, NUMBERS[tensor.datatype]).tolist())
    items = deserialize_bytes_tensor(raw).tolist()
    return items if tensor.name == "image_bytes" else [item.decode() for item in items]


def _answer(text: str) -> Any:
    response = service_pb2.ModelInferResponse(model_name="nvlm")
    for name, value in {"text_output": text, "finish_reason": "stop"}.items():
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(serialize_byte_tensor(np.array([value.encode()], np.object_)).item())
    for name, count in {"num_input_tokens": 3, "num_output_tokens": 2}.items():
        response.outputs.add(name=name, datatype="INT32", shape=[1])
        response.raw_output_contents.append(np.array([count], np.int32).tobytes())
    response.parameters["triton_final_response"].bool_param = True
    return service_pb2.ModelStreamInferResponse(infer_response=response)
