"""Tensors of clients: shapes that lie, and what only the server's own models say to each other (fault 25)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from .conftest import FaultRecord, Watch
from .inner import Call
from .served import Served
from .wire import ask, assert_clear

Begin = Callable[[], Watch]
INNER = ("tensorrt_llm", "multimodal_decoder", "vision_encoder", "preprocessing", "postprocessing", "selftest")


@pytest.mark.fault(case=25)
@pytest.mark.parametrize("model", INNER)
def test_inner_models_cannot_be_called_through_the_door(served: Served, fault_record: FaultRecord, model: str) -> None:
    for call in ("infer", "generate", "generate_stream", "versions/1/infer", "INFER", "infer/"):
        answer = ask(served.http, f"/v2/models/{model}/{call}", table(float("nan")))
        assert answer.status in (403, 404), f"{call}: {answer.status} {answer.body!r}"
        assert_clear(answer.sentence)
    fault_record(time_ms=answer.ms, variant=f"{model} through the gateway")


def table(value: float) -> dict[str, object]:
    """A request with a prompt table of its own."""
    inputs = [
        {"name": "input_ids", "datatype": "INT32", "shape": [1, 2], "data": [5, 6]},
        {"name": "prompt_embedding_table", "datatype": "FP32", "shape": [1, 1, 2], "data": [value, value]},
    ]
    return {"inputs": inputs}


def infer(*inputs: dict[str, object]) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


QUESTION = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hello"]}
SHAPES: dict[str, bytes] = {
    "a prompt table": infer(
        QUESTION, {"name": "prompt_embedding_table", "datatype": "FP32", "shape": [1], "data": [1]}
    ),
    "FP16 pixels": infer(QUESTION, {"name": "image_input", "datatype": "FP16", "shape": [1, 3, 448, 448], "data": []}),
    "more elements than data": infer({**QUESTION, "shape": [1000]}),
    "a shape that overflows": infer({**QUESTION, "shape": [2**62, 4]}),
    "a product that overflows to 1": infer({**QUESTION, "shape": [2**32 + 1, 2**32 - 1]}),
    "a negative shape": infer({**QUESTION, "shape": [-1]}),
    "no shape": infer({"name": "text_input", "datatype": "BYTES", "data": ["Hello"]}),
    "another type": infer({**QUESTION, "datatype": "FP32", "data": [1.0]}),
    "an unknown type": infer({**QUESTION, "datatype": "FP1024"}),
    "text for a number": infer(QUESTION, {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": ["x"]}),
    "NaN": infer(QUESTION, {"name": "temperature", "datatype": "FP32", "shape": [1], "data": [float("nan")]}),
    "one input twice": infer(QUESTION, QUESTION),
    "a shared memory region": infer(
        {
            "name": "text_input",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"shared_memory_region": "nvlm_trt", "shared_memory_byte_size": 64},
        }
    ),
    "10,000 outputs": json.dumps(
        {"inputs": [QUESTION], "outputs": [{"name": f"o{n}"} for n in range(10_000)]}
    ).encode(),
}


@pytest.mark.fault(case=25)
@pytest.mark.parametrize("model", ["nvlm", "ensemble"])
def test_tensors_of_an_infer_call_reach_no_model(
    served: Served, watch: Begin, fault_record: FaultRecord, model: str
) -> None:
    """Both answer in pieces, which infer over HTTP cannot: tritonserver says so before it looks at a tensor."""
    began, slowest = watch(), 0.0
    for name, body in SHAPES.items():
        answer = ask(served.http, f"/v2/models/{model}/infer", body)
        assert answer.status in (400, 501), f"{name}: {answer.status} {answer.body[:300]!r}"
        assert_clear(answer.sentence)
        slowest = max(slowest, answer.ms)
    growth, seen = began.end()
    fault_record(time_ms=slowest, memory_mb=growth, others=seen, variant=f"{model}: infer over HTTP")


BINARY: dict[str, tuple[bytes, str]] = {
    "a header longer than the body": (b"{}", "1000000"),
    "a negative header": (b"{}", "-1"),
    "a header that is no number": (b"{}", "x"),
}


@pytest.mark.fault(case=25)
def test_infer_calls_whose_binary_part_lies_harm_nobody(
    served: Served, watch: Begin, fault_record: FaultRecord
) -> None:
    one = {"name": "text_input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 2**31}}
    head = infer(one)
    lies = {**BINARY, "a size beyond the body": (head + struct.pack("<I", 2**31 - 1) + b"x", str(len(head)))}
    began, slowest = watch(), 0.0
    for name, (body, length) in lies.items():
        headers = {"Inference-Header-Content-Length": length, "Content-Type": "application/octet-stream"}
        answer = ask(served.http, "/v2/models/ensemble/infer", body, headers)
        assert answer.status in (400, 501), f"{name}: {answer.status} {answer.body[:300]!r}"
        assert_clear(answer.sentence)
        slowest = max(slowest, answer.ms)
    growth, seen = began.end()
    fault_record(time_ms=slowest, memory_mb=growth, others=seen, variant="infer over HTTP, binary parts that lie")


@pytest.mark.fault(case=25)
def test_over_grpc_the_model_takes_no_tensors_but_its_fields(served: Served, fault_record: FaultRecord) -> None:
    for model in ("nvlm", "ensemble"):
        for name in ("prompt_embedding_table", "image_input", "input_ids"):
            inputs = {"text_input": np.array([b"Hello"], np.object_), name: np.ones((1, 4), np.float32)}
            with pytest.raises(InferenceServerException) as refusal:
                Call(served.grpc, model, inputs).ids()
            assert name in refusal.value.message()
    fault_record(variant="gRPC: nvlm, ensemble")


FIELDS = (
    ("nvlm", "text_input", "BYTES"),
    ("nvlm", "image_bytes", "BYTES"),
    ("preprocessing", "text_input", "BYTES"),
    ("tensorrt_llm", "input_ids", "INT32"),
    ("vision_encoder", "tiles", "UINT8"),
    ("postprocessing", "output_ids", "INT32"),
)
LIES: dict[str, tuple[list[int], bytes]] = {
    "more elements than data": ([1000], b"\x05\0\0\0Hello"),
    "a shape that overflows": ([2**62, 4], b"\x05\0\0\0Hello"),
    "a product that overflows to 1": ([2**32 + 1, 2**32 - 1], b"\x05\0\0\0Hello"),
    "a negative shape": ([-1], b"\x05\0\0\0Hello"),
    "no element": ([0], b""),
    "a text longer than the data": ([1], b"\xff\xff\xff\x7fHello"),
    "half a length": ([1], b"\x05\0"),
    "two texts for one": ([1], b"\x01\0\0\0a\x01\0\0\0b"),
}


@pytest.mark.fault(case=25)
def test_over_grpc_tensors_whose_shapes_lie_are_refused(
    served: Served, watch: Begin, fault_record: FaultRecord
) -> None:
    began = watch()
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, (shape, data) in LIES.items():
            for model, field, kind in FIELDS:
                request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data])
                request.inputs.add(name=field, datatype=kind, shape=shape)
                for answer in stub.ModelStreamInfer(iter([request]), timeout=20):
                    assert answer.error_message, f"{model} took {name}"
    growth, seen = began.end()
    assert growth < 60
    fault_record(memory_mb=growth, others=seen, variant="gRPC: shapes that lie")
