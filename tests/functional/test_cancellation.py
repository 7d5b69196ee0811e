"""A request that is given up is given up everywhere: its place in the decoder is free again."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton

from nvlm_trt.client import AsyncNvlmClient, Options
from nvlm_trt.client.sync import ENDING_SECONDS, AnswerStream
from nvlm_trt.triton_streams import CLOSING_SECONDS

from .shown import given_up

LONG = Options(max_tokens=400, min_tokens=400)


def test_closing_a_stream_ends_the_decoding(client, server):
    with given_up(server, 3 * 400), ThreadPoolExecutor(3) as threads:
        streams = list(threads.map(lambda number: client.stream(f"Tell me {number}", options=LONG), range(3)))
        list(threads.map(lambda stream: next(iter(stream)), streams))
        began = time.monotonic()
        list(threads.map(AnswerStream.close, streams))
        assert time.monotonic() - began < ENDING_SECONDS, "the server says that it has ended them"


def test_closing_an_asyncio_client_ends_what_it_left(server):
    async def leave() -> float:
        async with AsyncNvlmClient(server.grpc_url) as client:
            streams = [client.stream(f"Tell me {number}", options=LONG) for number in range(4)]
            for stream in streams:
                await anext(aiter(stream))
            for stream in streams:
                await stream.close()
            began = time.monotonic()
        return time.monotonic() - began

    with given_up(server, 4 * 400):
        assert asyncio.run(leave()) < CLOSING_SECONDS, "the server says that it has ended them"


def test_an_http_client_that_goes_away_ends_the_decoding(server):
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    body = json.dumps({"text_input": "Tell me", "max_tokens": 400, "min_tokens": 400, "stream": True})
    with given_up(server, 400):
        connection.request("POST", "/v2/models/nvlm/generate_stream", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        response.close()
        connection.close()


def test_stop_by_request_id_ends_a_direct_decoding(server):
    """As with the C++ backend: a second request with the first one's id and `stop`."""

    def tensor(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
        made = triton.InferInput(name, list(values.shape), datatype)
        made.set_data_from_numpy(values)
        return made

    def ask(*more: triton.InferInput) -> list[triton.InferInput]:
        return [
            tensor("input_ids", np.array([[5, 6, 7]], np.int32), "INT32"),
            tensor("input_lengths", np.array([[3]], np.int32), "INT32"),
            tensor("request_output_len", np.array([[400]], np.int32), "INT32"),
            tensor("streaming", np.array([[True]]), "BOOL"),
            *more,
        ]

    with given_up(server, 400), triton.InferenceServerClient(server.grpc_url) as client:
        answers: list[object] = []
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer("tensorrt_llm", ask(), request_id="mine")
        client.async_stream_infer("tensorrt_llm", ask(tensor("stop", np.array([[True]]), "BOOL")), request_id="mine")
        client.stop_stream()
    tokens = [answer.as_numpy("sequence_length") for answer in answers if isinstance(answer, triton.InferResult)]
    assert sum(int(count.item()) for count in tokens if count is not None) < 400
