"""Streams that are not cancelled while a response may come, against a gRPC server that notes what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from nvlm_trt import triton_streams
from nvlm_trt.triton_streams import CLOSING_SECONDS, Connection, ResponseStream, tell

PATIENCE = 60
WAIT = '{"methodConfig": [{"name": [{}], "waitForReady": true}]}'


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with its last response, as soon as that is permitted.

    Attributes:
        came: Models of requests.
        permits: For one more response each.
        pieces: Responses before the last one.
        asks_for_codes: Whether each request asked for the codes of errors.
        metadata: Names of the headers of the streams.
        refuses: What a response tells of an error instead.
        fates: What became of streams: "cancelled", or "ended" by the client after the last response.
    """

    def __init__(self) -> None:
        self.came: list[str] = []
        self.permits = asyncio.Semaphore(0)
        self.pieces = 0
        self.asks_for_codes: list[bool] = []
        self.metadata: set[str] = set()
        self.refuses = ""
        self.fates: list[str] = []

    async def ModelStreamInfer(self, requests, context):  # noqa: N802 - its name
        try:
            async for request in requests:
                self.came.append(request.model_name)
                self.asks_for_codes.append(request.parameters["error_codes"].bool_param)
                self.metadata |= {key for key, _ in context.invocation_metadata()}
                if request.model_name == "fail":
                    await context.abort(grpc.StatusCode.INTERNAL, "it failed")
                for _ in range(self.pieces):
                    await self.permits.acquire()
                    yield service_pb2.ModelStreamInferResponse()
                await self.permits.acquire()
                answer = service_pb2.ModelStreamInferResponse()
                answer.infer_response.model_name = request.model_name
                answer.infer_response.parameters["triton_final_response"].bool_param = True
                answer.error_message = self.refuses
                yield answer
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
        stream = ResponseStream(connection, request("one"))
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
        assert [await stream.read() for _ in range(2)] == [None, None]
        await until(lambda: server.fates == ["ended"])

    run(scene)


def asking(server: Server, asked: list[str], name: str, *, hear: int = 1) -> Callable[[], Awaitable[None]]:
    """Asks the server to end a request; it does so when it has been asked so often."""

    async def ask() -> None:
        asked.append(name)
        if len(asked) == hear:
            server.permits.release()

    return ask


def test_models_are_asked_to_end_a_request_until_it_has_ended():
    async def scene(server: Server, connection: Connection) -> None:
        asked: list[str] = []
        stream = ResponseStream(connection, request("one"))
        await until(lambda: server.came)
        for _ in range(2):
            stream.give_up(asks=[asking(server, asked, "end it", hear=3)])
        await until(lambda: server.fates == ["ended"])
        await asyncio.sleep(3 * triton_streams.AGAIN_SECONDS)
        assert asked == ["end it"] * 3

    run(scene)


def test_who_does_not_hear_or_cannot_be_asked_is_asked_again_and_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr(triton_streams, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(triton_streams, "AGAIN_SECONDS", 0.01)

    async def scene(server: Server, connection: Connection) -> None:
        asked: list[str] = []

        async def deaf() -> None:
            await asyncio.Event().wait()

        async def broken() -> None:
            raise RuntimeError("no such model")

        stream = ResponseStream(connection, request("one"))
        await until(lambda: server.came)
        stream.give_up(asks=[deaf, broken, asking(server, asked, "end it", hear=3)])
        await until(lambda: server.fates == ["ended"])

    run(scene)
    said = "a request that was given up could not be ended"
    assert {(record.message, record.exc_info is None) for record in caplog.records} == {
        (said, False),
        (f"{said}: no answer within 0.01 s", True),
    }


def test_models_are_asked_for_the_codes_of_errors_and_the_server_for_none():
    """By the header ``triton_grpc_error`` a client kills tritonserver 2.51 now and then."""

    async def scene(server: Server, connection: Connection) -> None:
        server.refuses = "[UNAVAILABLE] the server is busy"
        server.permits.release()
        stream = ResponseStream(connection, {**request("one"), "parameters": {"traceparent": "00-1"}})
        with pytest.raises(InferenceServerException) as refused:
            await stream.read()
        assert (refused.value.status(), refused.value.message()) == ("UNAVAILABLE", "the server is busy")
        assert server.asks_for_codes == [True]
        assert "triton_grpc_error" not in server.metadata

    run(scene)


def test_who_reads_while_another_gives_up_gets_no_more():
    """An answer with a hole must not look like a whole one."""

    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"))
        reader = asyncio.create_task(stream.read())
        await until(lambda: server.came)
        stream.give_up()
        server.permits.release()
        assert await reader is None
        await until(lambda: server.fates == ["ended"])
        assert await stream.read() is None

    run(scene)


def test_responses_that_nobody_took_are_dropped_when_a_request_is_given_up():
    async def scene(server: Server, connection: Connection) -> None:
        told: list[str] = []
        server.pieces = 2
        stream = ResponseStream(connection, request("one"), lambda: told.append("told"))
        for _ in range(2):
            server.permits.release()
        await until(lambda: len(told) == 2)
        stream.give_up()
        assert await stream.read() is None
        server.permits.release()
        await until(lambda: server.fates == ["ended"])

    run(scene)


def test_a_request_that_nobody_wants_and_that_does_not_end_is_cancelled_after_a_while(monkeypatch):
    monkeypatch.setattr(triton_streams, "SILENT_SECONDS", 0.2)

    async def scene(server: Server, connection: Connection) -> None:
        server.pieces = 100
        stream = ResponseStream(connection, request("one"))
        await until(lambda: server.came)
        began = time.monotonic()
        stream.give_up()
        for _ in range(3):  # it is not silent yet
            await asyncio.sleep(0.1)
            server.permits.release()
        await until(lambda: server.fates == ["cancelled"])
        assert time.monotonic() - began > 0.45

    run(scene)


def test_what_no_server_has_got_is_given_up_at_once():
    async def scene(server: Server, connection: Connection) -> None:
        nobody = Connection("127.0.0.1:9", (("grpc.service_config", WAIT),))
        stream = ResponseStream(nobody, request("one"))
        await asyncio.sleep(0.2)
        stream.give_up()
        await asyncio.wait_for(nobody.close(), CLOSING_SECONDS / 2)
        assert await stream.read() is None

    run(scene)


def test_a_stream_of_which_a_request_failed_is_over():
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("fail"))
        with pytest.raises(grpc.RpcError, match="it failed"):
            await stream.read()
        assert await stream.read() is None
        asked: list[str] = []
        stream.give_up(asks=[asking(server, asked, "end it")])
        await asyncio.sleep(0.05)
        assert asked == []

    run(scene)


def test_a_refusal_ends_the_request_and_the_stream():
    """The server says it on the stream, which it leaves open."""

    async def scene(server: Server, connection: Connection) -> None:
        server.refuses = "no such model"
        server.permits.release()
        stream = ResponseStream(connection, request("one"))
        with pytest.raises(InferenceServerException, match="no such model"):
            await stream.read()
        assert await stream.read() is None
        await until(lambda: server.fates == ["ended"])

    run(scene)


def test_something_is_told_to_a_model_and_its_refusal_raised():
    async def scene(server: Server, connection: Connection) -> None:
        for _ in range(2):
            server.permits.release()
        await tell(connection, request("one"))
        server.refuses = "no such model"
        with pytest.raises(InferenceServerException, match="no such model"):
            await tell(connection, request("two"))
        await until(lambda: server.fates == ["ended", "ended"])

    run(scene)


def test_each_response_and_the_end_are_told():
    async def scene(server: Server, connection: Connection) -> None:
        told: list[str] = []
        stream = ResponseStream(connection, request("one"), lambda: told.append("told"))
        server.permits.release()
        await stream.read()
        assert told == ["told"]

    run(scene)


@pytest.mark.parametrize("given_up", [False, True])
def test_a_connection_is_closed_when_its_streams_have_ended(given_up):
    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"))
        await until(lambda: server.came)
        server.permits.release()
        if given_up:
            stream.give_up()
        else:
            await stream.read()
        await connection.close()
        assert server.fates == ["ended"]

    run(scene)


def test_a_connection_to_a_server_that_ends_nothing_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(triton_streams, "CLOSING_SECONDS", 0.2)

    async def scene(server: Server, connection: Connection) -> None:
        stream = ResponseStream(connection, request("one"))
        await until(lambda: server.came)
        stream.give_up()
        began = time.monotonic()
        await connection.close()
        assert 0.1 < time.monotonic() - began < CLOSING_SECONDS
        await until(lambda: server.fates == ["cancelled"])

    run(scene)
