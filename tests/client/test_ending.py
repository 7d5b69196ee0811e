"""Requests that are given up: the server is asked to end them, for a stream that is cancelled may hang it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from nvlm_trt.client import AsyncNvlmClient, NvlmClient, sync
from nvlm_trt.errors import ServerError

PATIENCE = 60


class Endless(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says one piece and goes on until it is asked to end.

    Attributes:
        obeys: Whether it ends then.
        asked: Ids of requests to end, as often as that was asked.
        ends: By id, what lets a request end.
        fates: What became of answers.
        over: Set with each fate.
    """

    def __init__(self) -> None:
        self.obeys = True
        self.asked: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.fates: list[str] = []
        self.over = threading.Semaphore(0)

    def ModelStreamInfer(self, requests, context):  # noqa: N802 - the protocol's name
        asked = next(requests)
        if asked.parameters["cancel_request"].bool_param:
            self.asked.append(asked.id)
            if self.obeys and asked.id in self.ends:
                self.ends[asked.id].set()
            yield piece("", final=True)
            return
        end = self.ends[asked.id] = threading.Event()
        fate = "left"

        def note_end() -> None:  # called however the stream ends
            end.set()
            self.fates.append(fate)
            self.over.release()

        context.add_callback(note_end)
        yield piece("Well", final=False)
        end.wait()
        if context.is_active():
            fate = "asked to end"
            yield piece("", final=True)
            for _ in requests:  # to the end of the client's side
                continue


def piece(text: str, *, final: bool) -> service_pb2.ModelStreamInferResponse:
    response = service_pb2.ModelInferResponse(model_name="nvlm")
    for name, value in {"text_output": text, "finish_reason": ""}.items() if text else ():
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(serialize_byte_tensor(np.array([value.encode()], np.object_)).item())
    response.parameters["triton_final_response"].bool_param = final
    return service_pb2.ModelStreamInferResponse(infer_response=response)


@pytest.fixture
def endless() -> Iterator[Endless]:
    servicer, server = Endless(), grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    servicer.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


def leave(url: str) -> None:
    with NvlmClient(url) as client, client.stream("Go on") as stream:
        assert next(iter(stream)) == "Well"


async def leave_async(url: str) -> None:
    async with AsyncNvlmClient(url) as client, client.stream("Go on") as stream:
        assert await anext(aiter(stream)) == "Well"


async def leave_cancelled(url: str) -> None:
    came = asyncio.Event()

    async def ask(client: AsyncNvlmClient) -> None:
        async for _ in client.stream("Go on"):
            came.set()

    async with AsyncNvlmClient(url) as client:
        task = asyncio.create_task(ask(client))
        await came.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize("way", [leave, leave_async, leave_cancelled])
def test_who_leaves_an_answer_asks_the_server_to_end_it(endless, way):
    left = way(endless.url)
    if left is not None:
        asyncio.run(left)
    assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["asked to end"]


def test_another_thread_may_close_an_answer_that_is_waited_for(endless):
    with NvlmClient(endless.url) as client, client.stream("Go on") as stream:
        assert next(iter(stream)) == "Well"
        closer = threading.Timer(0.1, stream.close)
        closer.start()
        with pytest.raises(ServerError, match="closed"):
            list(stream)
        closer.join()
    assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["asked to end"]


def test_two_tasks_may_wait_for_an_answer_and_close_it(endless):
    async def ask() -> None:
        async with AsyncNvlmClient(endless.url) as client, client.stream("Go on") as stream:
            assert await anext(aiter(stream)) == "Well"
            whole = asyncio.create_task(stream.answer())
            await asyncio.sleep(0.05)
            await stream.close()
            with pytest.raises(ServerError, match="broke off"):
                await whole
            with pytest.raises(ServerError, match="broke off"):
                await stream.answer()

    asyncio.run(ask())
    assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["asked to end"]


def test_whoever_interrupts_the_end_of_an_answer_is_not_held(endless):
    """Ctrl-C leaves the block of the stream, a second one its end."""
    endless.obeys = False

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def leave_impatiently() -> None:
        with NvlmClient(endless.url) as client, client.stream("Go on") as stream:
            assert next(iter(stream)) == "Well"
            stream._over.wait = interrupted

    with pytest.raises(KeyboardInterrupt):
        leave_impatiently()
    assert endless.over.acquire(timeout=PATIENCE)


def test_a_connection_whose_answer_was_left_takes_the_next(endless):
    with NvlmClient(endless.url) as client:
        for _ in range(2):
            with client.stream("Go on") as stream:
                assert next(iter(stream)) == "Well"
            stream.close()
            assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["asked to end"] * 2


def test_a_server_that_does_not_end_it_is_left(endless, monkeypatch):
    monkeypatch.setattr(sync, "ENDING_SECONDS", 0.1)
    endless.obeys = False
    leave(endless.url)
    assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["left"]


@pytest.mark.parametrize("way", [leave, leave_async])
def test_a_server_that_has_not_begun_it_is_asked_again(endless, way):
    """The request to end an answer may come before that for it."""
    endless.obeys = False

    def hear() -> None:
        while len(endless.asked) < 3:
            time.sleep(0.01)
        endless.obeys = True

    ear = threading.Thread(target=hear)
    ear.start()
    left = way(endless.url)
    if left is not None:
        asyncio.run(left)
    ear.join()
    assert endless.over.acquire(timeout=PATIENCE)
    assert endless.fates == ["asked to end"]
    assert len(set(endless.asked)) == 1
