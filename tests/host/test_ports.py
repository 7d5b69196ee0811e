"""Ports are kept from everybody else between the moment they are chosen and the moment a server listens on them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from nvlm_trt.errors import BusyError
from nvlm_trt.host.ports import HeldPorts, Ports

HOST = "127.0.0.1"


@pytest.fixture
def held() -> Iterator[HeldPorts]:
    ports = Ports(0, 0, 0).held(HOST)
    yield ports
    ports.release()


def bind(port: int, *, reuse: bool) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
    try:
        one.bind((HOST, port))
    except OSError:
        one.close()
        raise
    return one


def test_free_ports_are_found_and_differ(held):
    ports = held.ports
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert 0 not in (ports.http, ports.grpc, ports.metrics)


def test_a_server_can_listen_on_a_held_port_and_so_can_the_one_that_replaces_it(held):
    for _ in range(2):
        with bind(held.ports.http, reuse=True) as server:
            server.listen()
            with socket.create_connection((HOST, held.ports.http)) as client:
                connection, address = server.accept()
                with connection:
                    assert address == client.getsockname()


def test_nobody_else_gets_a_held_port(held):
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        bind(held.ports.grpc, reuse=False)
    with socket.create_server((HOST, 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        client.connect(server.getsockname())
        assert client.getsockname()[1] not in (held.ports.http, held.ports.grpc, held.ports.metrics)


def test_released_ports_are_free_again():
    held = Ports(0, 0, 0).held(HOST)
    held.release()
    for port in (held.ports.http, held.ports.grpc, held.ports.metrics):
        bind(port, reuse=False).close()


def test_a_port_in_use_is_named():
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=f"{HOST}:{port}"):
            Ports(0, port, 0).held(HOST)


def test_two_services_cannot_share_a_port():
    with pytest.raises(BusyError, match="share a port"):
        Ports(18555, 18555, 0).held(HOST)
