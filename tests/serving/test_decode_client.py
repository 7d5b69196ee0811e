"""The way to the decoder, over a gRPC server that answers as the test says: what waits, what is told, what is kept."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt.serving.decode_client import GRPC_ADDRESS, DecodeClient

PATIENCE = 60
TILE = np.zeros((1, 4, 4, 3), np.uint8)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Notes what comes; answers requests token by token as they are let through, and those that stop others at once.

    Attributes:
        came: Models and ids of requests, in the order of their coming.
        tokens: Takes one more answer to a request.
        vision: Whether the vision encoder answers.
        deaf: Times that the decoder is told to stop before it knows the request.
        cancelled: Ids of requests whose streams were cancelled.
    """

    def __init__(self) -> None:
        self.came: list[tuple[str, str]] = []
        self.tokens = asyncio.Semaphore(0)
        self.vision = asyncio.Event()
        self.vision.set()
        self.deaf = 0
        self.cancelled: list[str] = []
        self._answering: dict[str, asyncio.Task[object]] = {}

    def ids(self, model: str) -> list[str]:
        return [identity for asked, identity in self.came if asked == model]

    async def ModelInfer(self, request, context):  # noqa: N802 - its name
        self.came.append((request.model_name, request.id))
        await self.vision.wait()
        return service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)

    async def ModelStreamInfer(self, requests, context):  # noqa: N802 - its name
        async for request in requests:
            self.came.append((request.model_name, request.id))
            final = "stop" in [tensor.name for tensor in request.inputs]
            while not final:
                final = await self._is_stopped(request.id)
                yield answer(request.model_name, final=final)
            if self.deaf:
                self.deaf -= 1
            elif request.id in self._answering:
                await self.vision.wait()
                self._answering[request.id].cancel()
            yield answer(request.model_name, final=True)

    async def _is_stopped(self, identity: str) -> bool:
        self._answering[identity] = asyncio.ensure_future(self.tokens.acquire())
        try:
            await asyncio.wait({self._answering[identity]})
        except asyncio.CancelledError:
            self.cancelled.append(identity)
            raise
        return self._answering[identity].cancelled()


def answer(model: str, *, final: bool) -> service_pb2.ModelStreamInferResponse:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.model_name = model
    message.infer_response.parameters["triton_final_response"].bool_param = final
    return message


def run(monkeypatch: pytest.MonkeyPatch, scene: Callable[[Server, DecodeClient], Awaitable[None]]) -> None:
    """Run a scene with a client that has room for two tiles."""

    async def main() -> None:
        servicer, server = Server(), grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        monkeypatch.setenv(GRPC_ADDRESS, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        client = DecodeClient(4, max_pixel_bytes=2 * TILE.nbytes)
        try:
            await asyncio.wait_for(scene(servicer, client), PATIENCE)
        finally:
            servicer.vision.set()
            await client.close()
            assert servicer.cancelled == []
            await server.stop(None)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def begin(client: DecodeClient, tiles: int = 1) -> asyncio.Task:
    """A request, with tiles or without, that waits for its first token."""

    async def ask() -> None:
        if tiles:
            decoding = await client.start_ensemble("ensemble", {"tiles": np.repeat(TILE, tiles, axis=0)})
        else:
            decoding = client.start({"x": np.zeros(1, np.int32)})
        try:
            async for _ in decoding:
                raise AssertionError("the server sends no tokens")
        finally:
            await decoding.stop()

    return asyncio.create_task(ask())


async def give_up(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_pixels_wait_until_those_of_others_are_encoded(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        tasks = [begin(client, tiles) for tiles in (1, 1, 2)]
        await until(lambda: len(server.ids("ensemble")) == 2)
        server.tokens.release()
        await asyncio.sleep(0.1)
        assert len(server.ids("ensemble")) == 2
        server.tokens.release()
        await until(lambda: len(server.ids("ensemble")) == 3)
        await give_up(*tasks)

    run(monkeypatch, scene)


def test_who_gives_up_waiting_was_never_sent_and_who_gives_up_what_was_sent_makes_room(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        sent, waiting, last = begin(client, 2), begin(client), begin(client, 2)
        await until(lambda: server.ids("ensemble"))
        await give_up(waiting)
        server.vision.clear()
        await give_up(sent)
        await until(lambda: server.ids("vision_encoder") and server.ids("tensorrt_llm"))
        await asyncio.sleep(0.1)
        assert len(server.ids("ensemble")) == 1  # the vision encoder may hold the pixels until it has answered
        server.vision.set()
        await until(lambda: len(server.ids("ensemble")) == 2)
        assert {*server.ids("vision_encoder"), *server.ids("tensorrt_llm")} == {server.ids("ensemble")[0]}
        await give_up(last)

    run(monkeypatch, scene)


def test_the_decoder_is_told_to_stop_while_the_vision_encoder_does_not_answer(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        server.vision.clear()
        task = begin(client)
        await until(lambda: server.ids("ensemble"))
        await give_up(task)
        await until(lambda: server.ids("vision_encoder") and server.ids("tensorrt_llm"))

    run(monkeypatch, scene)


@pytest.mark.parametrize("tiles", [0, 1])
def test_a_request_that_is_given_up_is_stopped_until_its_stream_ends_and_is_not_cancelled(monkeypatch, tiles):
    async def scene(server: Server, client: DecodeClient) -> None:
        server.deaf = 3  # the ensemble has not come to the decoder yet
        task = begin(client, tiles)
        await until(lambda: server.came)
        await give_up(task)
        await until(lambda: server.deaf == 0)
        await client.close()
        (asked,) = {identity for _, identity in server.came}
        assert len(server.ids("tensorrt_llm")) >= 4 + (not tiles)
        assert set(server.ids("vision_encoder")) == ({asked} if tiles else set())

    run(monkeypatch, scene)


def test_a_request_of_which_nothing_was_read_is_stopped_too(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        decoding = client.start({"x": np.zeros(1, np.int32)})
        await until(lambda: server.came)
        await decoding.stop()
        await decoding.stop()
        await client.close()
        assert len(server.ids("tensorrt_llm")) >= 2

    run(monkeypatch, scene)


def test_a_request_that_cannot_be_sent_takes_no_room(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        with pytest.raises(TypeError):
            await client.start_ensemble("ensemble", {"tiles": TILE, "x": np.zeros(1, np.complex64)})
        task = begin(client, 2)
        await until(lambda: server.ids("ensemble"))
        await give_up(task)

    run(monkeypatch, scene)


def test_what_was_sent_is_not_kept_while_the_answer_is_made(monkeypatch):
    async def scene(server: Server, client: DecodeClient) -> None:
        def kept() -> list[str]:
            return [made.name() for made in gc.get_objects() if type(made) is triton.InferInput]

        task = begin(client)
        await until(lambda: server.ids("ensemble"))
        await until(lambda: not kept())
        assert not task.done()
        await give_up(task)

    run(monkeypatch, scene)
