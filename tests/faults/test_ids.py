"""Ids that are in use twice, unknown, or somebody else's (fault 23)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from .conftest import FaultRecord, Watch
from .inner import Call, decoding
from .neighbour import LONG
from .served import Served
from .wire import CHAT, GENERATE, Reply, ask, chat

Begin = Callable[[], Watch]
STREAMING = np.array([[True]])
STOP = {"input_lengths": np.array([[1]], np.int32), "request_output_len": np.array([[1]], np.int32), "stop": STREAMING}


@pytest.mark.fault(case=23)
def test_equal_ids_at_the_door_are_separate_requests(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    """An id is what logs show; nothing is found, stopped or joined by it."""
    expected = ask(served.http, CHAT, chat("Hello", max_tokens=60)).json["choices"]
    answers: list[Reply] = []
    headers = {"X-Request-ID": "mine"}
    began = watch()
    threads = [
        threading.Thread(target=lambda: answers.append(ask(served.http, CHAT, chat("Hello", max_tokens=60), headers)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    generated = ask(served.http, GENERATE, {"text_input": "Hello", "id": "mine", "max_tokens": 4})
    for thread in threads:
        thread.join()
    growth, seen = began.end()
    assert [answer.json["choices"] for answer in answers] == [expected] * 6
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
    assert generated.status == 200
    fault_record(memory_mb=growth, others=f"{seen}; 6 of one id exact", variant="equal ids through the gateway")


@pytest.mark.fault(case=23)
def test_nothing_at_the_door_stops_a_request_by_its_id(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    began = watch()
    for path in (GENERATE, "/v2/models/nvlm/generate_stream", "/v2/models/ensemble/generate"):
        for field in ("stop", "cancel", "cancel_request", "cancel_id"):
            answer = ask(served.http, path, {"text_input": "x", "id": "mine", field: True})
            assert answer.status == 400
            assert "unknown field" in answer.sentence
    assert ask(served.http, "/v2/models/tensorrt_llm/generate", {"stop": True, "id": "mine"}).status == 403
    growth, seen = began.end()
    fault_record(memory_mb=growth, others=seen, variant="stop through the gateway")


@pytest.mark.fault(case=23)
def test_a_stop_over_grpc_ends_the_requests_of_its_id_alone(
    served: Served, watch: Begin, fault_record: FaultRecord
) -> None:
    """GRPC knows no tenants: an id that is unknown, or of a request of the gateway, stops nothing."""
    began = watch()
    whole = decoding(np.arange(5, 30), 400, streaming=STREAMING)
    mine = [Call(served.grpc, "tensorrt_llm", whole, "mine") for _ in range(2)]
    other = Call(served.grpc, "tensorrt_llm", whole, "other")
    for call in (*mine, other):
        call.first()
    chatting: list[Reply] = []
    headers = {"X-Request-ID": "chosen"}
    thread = threading.Thread(target=lambda: chatting.append(ask(served.http, CHAT, LONG, headers)))
    thread.start()
    for name in ("mine", "nobody's", "", "nvlm-0", "chosen"):
        assert Call(served.grpc, "tensorrt_llm", STOP, name).ids() == []
    lengths = [len(call.ids()) for call in mine]
    assert len(other.ids()) == 400
    thread.join()
    growth, seen = began.end()
    assert max(lengths) < 400
    assert b"[DONE]" in chatting[0].body
    fault_record(memory_mb=growth, others=f"{seen}; requests of other ids whole", variant="stop over gRPC")


@pytest.mark.fault(case=23)
def test_a_cancellation_over_grpc_ends_the_requests_of_its_id_alone(
    served: Served, watch: Begin, fault_record: FaultRecord
) -> None:
    began = watch()
    long = {name: np.array([count], np.int32) for name, count in (("max_tokens", 400), ("min_tokens", 400))}
    inputs = {"text_input": np.array([b"Tell me"], np.object_), "stream": np.array([True]), **long}
    mine, other = (Call(served.grpc, "nvlm", inputs, name) for name in ("mine", "other"))
    for call in (mine, other):
        call.first()
    chatting: list[Reply] = []
    headers = {"X-Request-ID": "chosen"}
    thread = threading.Thread(target=lambda: chatting.append(ask(served.http, CHAT, LONG, headers)))
    thread.start()
    for name in ("mine", "nobody's", "", "chosen"):
        Call(served.grpc, "nvlm", {}, name, {"cancel_request": True}).end()
    lengths = [call.end() for call in (mine, other)]
    thread.join()
    growth, seen = began.end()
    assert lengths[0] < 400 == lengths[1]
    assert b"[DONE]" in chatting[0].body
    fault_record(memory_mb=growth, others=f"{seen}; requests of other ids whole", variant="cancellation over gRPC")
