"""Streams that are never cancelled, against a gRPC server that notes what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nvlm_trt import triton_streams
from nvlm_trt.triton_streams import Connection, ResponseStream

PATIENCE = 60


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with one response, its last, as soon as that is permitted.

    Attributes:
        came: Models of requests.
        permits: For one more response each.
        fate: What became of the stream: "cancelled", or "ended" by the client after the last response.
    """

    def __init__(self) -> None:
        self.came: list[str] = []
        self.permits = asyncio.Semaphore(0)
        self.fate = ""

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
                yield answer
            self.fate = "ended"
        except asyncio.CancelledError:
            self.fate = "cancelled"
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
        assert stream.complete
        await until(lambda: server.fate == "ended")

    run(scene)


def test_a_stream_goes_on_until_all_its_requests_have_had_their_last_response():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        stream.send(request("two"))
        server.permits.release()
        assert await stream.read() is not None
        assert not stream.complete
        connection.beside(stream.drain())
        await until(lambda: server.came == ["one", "two"])
        server.permits.release()
        await until(lambda: server.fate == "ended")
        assert stream.complete

    run(scene)


def test_a_stream_that_broke_is_complete_and_draining_it_says_nothing():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("fail"), {})
        with pytest.raises(grpc.RpcError, match="it failed"):
            await stream.read()
        assert stream.complete
        await stream.drain()
        broken = ResponseStream(connection, request("fail"), {})
        await broken.drain()
        assert broken.complete

    run(scene)


def test_a_connection_is_closed_when_the_streams_that_are_being_ended_have_ended_or_after_a_while(monkeypatch):
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"), {})
        connection.beside(stream.drain())
        await until(lambda: server.came)
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        server.permits.release()
        await closing
        await until(lambda: server.fate == "ended")

    run(scene)

    async def silent(server: Server, connection: Connection) -> None:
        connection.beside(ResponseStream(connection, request("one"), {}).drain())
        await until(lambda: server.came)

    monkeypatch.setattr(triton_streams, "CLOSING_SECONDS", 0.1)
    run(silent)


def test_what_was_sent_is_not_kept():
    async def scene(server: Server, connection: Connection) -> None:
        asked = request("one")
        stream = ResponseStream(connection, asked, {})
        await until(lambda: server.came)
        assert asked == {}
        server.permits.release()
        await stream.drain()

    run(scene)
