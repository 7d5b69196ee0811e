"""build/nginx in front of the gateway: a real nginx with TLS, where one is installed."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import urllib3

from nvlm_trt.gateway.settings import Limits
from nvlm_trt.recipe import load_recipe

from ..gateway.door import Door
from ..gateway.upstream import Upstream
from .proxy import NGINX, SHIPPED, Proxy, event, wait_until

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONF = (SHIPPED / "nvlm.conf").read_text()
STREAM = "/v2/models/nvlm/generate_stream"
INFER = "/v2/models/nvlm/infer"
LIMIT = 4_000_000
CALL = "/inference.GRPCInferenceService/"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
def proxy(upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    with Door(Limits(max_body=LIMIT), http=upstream.port) as door, Proxy(tmp_path, gateway=door.port) as one:
        yield one


@needs_nginx
def test_events_come_as_they_are_made_and_a_client_that_hangs_up_is_noticed_by_the_server(
    proxy: Proxy, upstream: Upstream
) -> None:
    answer = proxy.stream("POST", STREAM, b'{"text_input": "wait for half a minute"}')
    assert (answer.status, event(answer)) == (200, b"data: 1")
    assert not upstream.hung_up.is_set(), "the second event is still to come"
    answer.close()
    assert upstream.hung_up.wait(10)


@needs_nginx
def test_bodies_come_up_to_the_limit_and_it_is_the_gateway_who_refuses_larger_ones(
    proxy: Proxy, upstream: Upstream
) -> None:
    body = bytes(LIMIT)
    assert proxy.ask("POST", INFER, body).data == body
    refused = proxy.ask("POST", "/v1/chat/completions", body + b"1")
    assert refused.status == 413
    assert b'"code":"request_too_large"' in refused.data.replace(b": ", b":")
    assert len(upstream.seen) == 1


@needs_nginx
def test_a_request_has_one_id_in_both_logs(proxy: Proxy) -> None:
    mine = proxy.ask("GET", "/health/live", headers={"X-Request-ID": "mine-1"})
    assert mine.headers["X-Request-ID"] == "mine-1"
    made = proxy.ask("GET", "/health/live?key=secret").headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    wait_until(lambda: proxy.log.count("\n") == 2, "both are in the log")
    assert "mine-1 GET /health/live 200" in proxy.log
    assert f"{made} GET /health/live 200" in proxy.log
    assert "secret" not in proxy.log


@needs_nginx
def test_figures_and_the_deep_probe_are_not_for_the_public(proxy: Proxy) -> None:
    found = {path: proxy.ask("GET", path).status for path in ("/metrics", "/health/deep", "/health/ready")}
    assert found == {"/metrics": 403, "/health/deep": 403, "/health/ready": 200}


@needs_nginx
def test_grpc_passes_both_ways_at_once_for_clients_with_a_certificate(tmp_path: Path) -> None:
    headers: set[str] = set()

    def echo(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        headers.update(name for name, _ in context.invocation_metadata())
        yield from requests

    handlers = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(echo)}
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(CALL.strip("/"), handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with Proxy(tmp_path, grpc=port) as proxy:
            more = threading.Semaphore()

            def requests() -> Iterator[bytes]:
                for word in (b"first", b"x" * 2_000_000):
                    assert more.acquire(timeout=20)
                    yield word

            with proxy.channel() as channel:
                sent = (("triton_grpc_error", "true"), ("x-other", "1"))
                answers = channel.stream_stream(f"{CALL}ModelStreamInfer")(requests(), timeout=30, metadata=sent)
                assert next(answers) == b"first", "while the client still has something to say"
                assert "x-other" in headers
                assert "triton_grpc_error" not in headers, "tritonserver can die of what it asks for"
                more.release()
                assert len(next(answers)) == 2_000_000
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(f"{CALL}RepositoryModelUnload")(b"", timeout=30)
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
            with proxy.channel(with_certificate=False) as channel, pytest.raises(grpc.RpcError):
                list(channel.stream_stream(f"{CALL}ModelStreamInfer")(iter([b"let me in"]), timeout=30))
        server.stop(0)


@needs_nginx
def test_an_upgrade_drops_no_stream_and_refuses_no_request(tmp_path: Path) -> None:
    old_upstream, new_upstream = Upstream(), Upstream()
    old, new = Door(Limits(), http=old_upstream.port, grace=30), Door(Limits(), http=new_upstream.port)
    statuses: list[int] = []
    ended = threading.Event()

    def stop_old() -> None:
        old.ready = False
        old.gateway.drain(threading.Event())
        old.gateway.stop()

    with old, new, Proxy(tmp_path, gateway=old.port) as proxy:

        def go_on_asking() -> None:
            while not ended.is_set():
                # A connection that has said nothing yet may be closed when nginx changes its workers.
                with contextlib.suppress(urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError):
                    statuses.append(proxy.ask("POST", INFER, b"1").status)

        threads = [threading.Thread(target=go_on_asking)]
        streams = [proxy.stream("POST", STREAM, b'{"text_input": "2 seconds"}') for _ in range(8)]
        assert {event(stream) for stream in streams} == {b"data: 1"}
        for thread in threads:
            thread.start()
        proxy.servers(gateway=new.port)
        proxy.reload()
        asked = len(statuses)
        wait_until(lambda: len(statuses) >= asked + 2, "the request that was under way is answered, and one after it")
        assert new_upstream.seen, "requests come to the new server"
        threads.append(threading.Thread(target=stop_old))
        threads[-1].start()
        assert {event(stream) for stream in streams} == {b"data: 2"}, "streams of the old server go on to their end"
        threads[-1].join(20)
        assert not threads[-1].is_alive(), "the old server ends when its streams have"
        ended.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {202}
    old_upstream.close()
    new_upstream.close()


def test_nginx_waits_for_longer_than_the_gateway_lets_a_request_last() -> None:
    timeouts = dict(re.findall(r"(proxy_read_timeout|grpc_read_timeout|grpc_send_timeout)\s+(\d+)s;", CONF))
    assert len(timeouts) == 3
    assert min(map(int, timeouts.values())) > Limits().deadline


def test_nginx_takes_bodies_that_the_gateway_takes_of_every_recipe() -> None:
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", CONF)
    recipes = [load_recipe(path) for path in (SHIPPED.parent / "recipes").glob("*.yaml")]
    assert recipes
    assert max(Limits.of(recipe).max_body for recipe in recipes) <= int(megabytes) << 20
