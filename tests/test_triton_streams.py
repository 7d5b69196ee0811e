"""Streams that are not cancelled while a response may come, against a gRPC server that notes what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt import triton_streams
from nvlm_trt.triton_streams import CLOSING_SECONDS, Connection, ResponseStream

PATIENCE = 60
WAIT = '{"methodConfig": [{"name": [{}], "waitForReady": true}]}'


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with one response, its last, as soon as that is permitted.

    Attributes:
        came: Models of requests.
        permits: For one more response each.
        refuses: Whether a response tells of an error instead.
        fates: What became of streams: "cancelled", or "ended" by the client after the last response.
    """

    def __init__(self) -> None:
        self.came: list[str] = []
        self.permits = asyncio.Semaphore(0)
        self.refuses = False
        self.fates: list[str] = []

    async def ModelStreamInfer(self, requests, context):  # noqa: N802 - its name
        try:
            async for request in requests:
                self.came.append(request.model_name)
                if request.model_name == "fail":
                    await context.abort(grpc.StatusCode.INTERNAL, "it failed")
                await self.permits.acquire()
                answer = service_pb2.ModelStreamInferResponse()
                answer.infer_response.model_name = request.model_name
                answer.infer_response.parameters["triton_final_response"].bool_param = True
                answer.error_message = "no such model" if self.refuses else ""
                yield answer
                if self.refuses:
                    await asyncio.Event().wait()
            self.fates.append("ended")
        except asyncio.CancelledError:
            self.fates.append("cancelled")
            raise


def run(scene: Callable[[Server, Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        servicer, server = Server(), grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        connection = Connection(f"127.0.0.1:{port}", ())
        try:
            await asyncio.wait_for(scene(servicer, connection), PATIENCE)
        finally:
            await connection.close()
            await server.stop(None)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def request(model: str) -> dict[str, object]:
    return {"model_name": model, "inputs": []}


def test_who_is_cancelled_while_it_reads_leaves_the_stream_as_it_is():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        reader = asyncio.create_task(stream.read())
        await until(lambda: server.came)
        reader.cancel()
        await asyncio.wait({reader})
        with pytest.raises(TimeoutError):
            await stream.read(0.05)
        server.permits.release()
        result = await stream.read()
        assert result is not None
        assert result.get_response().model_name == "one"
        assert stream.over
        await until(lambda: server.fates == ["ended"])

    run(scene)


def test_a_request_that_is_given_up_is_ended_by_another_and_the_stream_when_both_are_answered():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        await until(lambda: server.came)
        for _ in range(2):
            stream.give_up(request("end it"))
        server.permits.release()
        await until(lambda: server.came == ["one", "end it"])
        assert not stream.over
        server.permits.release()
        await until(lambda: stream.over)
        await connection.close()
        assert server.fates == ["ended"]
        assert server.came == ["one", "end it"]

    run(scene)


def test_other_models_are_asked_to_end_it_until_it_has_ended(monkeypatch):
    monkeypatch.setattr(triton_streams, "CLOSING_SECONDS", 0.2)  # one that is asked does not answer

    async def scene(server: Server, connection: Connection) -> None:
        asked: list[str] = []

        async def ask(name: str) -> None:
            asked.append(name)
            if asked.count("deaf") == 3:
                server.permits.release()

        async def held() -> None:
            asked.append("held")
            await asyncio.Event().wait()

        stream = ResponseStream(connection, request("one"), {})
        await until(lambda: server.came)
        stream.give_up(asks=[partial(ask, "deaf"), held])
        await until(lambda: stream.over)
        await asyncio.sleep(triton_streams.AGAIN_SECONDS)
        seen = list(asked)
        await asyncio.sleep(3 * triton_streams.AGAIN_SECONDS)
        assert asked == seen
        assert asked.count("deaf") >= 3
        assert asked.count("held") == 1

    run(scene)


def test_who_reads_while_another_gives_up_reads_to_the_end():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})

        async def read_all() -> None:
            while await stream.read() is not None:
                continue

        reader = asyncio.create_task(read_all())
        await until(lambda: server.came)
        stream.give_up(request("end it"))
        for _ in range(2):
            server.permits.release()
        await reader
        await until(lambda: server.fates == ["ended"])

    run(scene)


def test_what_no_server_has_got_is_given_up_at_once():
    async def scene(server: Server, connection: Connection) -> None:
        nobody = Connection("127.0.0.1:9", (("grpc.service_config", WAIT),))
        stream = ResponseStream(nobody, request("one"), {})
        await asyncio.sleep(0.2)
        assert not stream.over
        stream.give_up(request("end it"))
        await asyncio.wait_for(nobody.close(), CLOSING_SECONDS / 2)
        assert stream.over

    run(scene)


def test_a_stream_of_which_a_request_failed_is_over():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("fail"), {})
        with pytest.raises(grpc.RpcError, match="it failed"):
            await stream.read()
        assert stream.over
        stream.give_up(request("end it"))
        assert server.came == ["fail"]

    run(scene)


def test_a_server_that_refuses_to_end_a_request_has_its_stream_cancelled():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        await until(lambda: server.came)
        server.refuses = True
        stream.give_up(request("end it"))
        server.permits.release()
        await until(lambda: server.fates == ["cancelled"])

    run(scene)


def test_each_response_and_the_end_are_told():
    async def scene(server: Server, connection: Connection) -> None:
        told: list[str] = []
        stream = ResponseStream(connection, request("one"), {}, lambda: told.append("told"))
        server.permits.release()
        await stream.read()
        assert told == ["told"]

    run(scene)


@pytest.mark.parametrize("given_up", [False, True])
def test_a_connection_is_closed_when_its_streams_have_ended(given_up):
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        await until(lambda: server.came)
        server.permits.release()
        if given_up:
            stream.give_up(request("end it"))
            server.permits.release()
        else:
            await stream.read()
        await connection.close()
        assert server.fates == ["ended"]

    run(scene)


def test_a_connection_to_a_server_that_ends_nothing_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(triton_streams, "CLOSING_SECONDS", 0.2)

    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        await until(lambda: server.came)
        stream.give_up(request("end it"))
        began = time.monotonic()
        await connection.close()
        assert 0.1 < time.monotonic() - began < CLOSING_SECONDS
        await until(lambda: server.fates == ["cancelled"])

    run(scene)
