"""Clients where the environment names a proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from nvlm_trt.client import AsyncNvlmClient, NvlmClient
from nvlm_trt.errors import ServerError

from ..proxy import Refusing
from .stand_in import StandIn


def ask(url: str) -> str:
    with NvlmClient(url, idle_timeout=60) as client:
        return client.generate("Hello").text


def ask_asyncio(url: str) -> str:
    async def answer() -> str:
        async with AsyncNvlmClient(url, idle_timeout=60) as client:
            return (await client.generate("Hello")).text

    return asyncio.run(answer())


EITHER = pytest.mark.parametrize("ask", [ask, ask_asyncio])


@EITHER
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_asked_without_it(
    proxy: socket.socket, ask: Callable[[str], str], host: str
) -> None:
    with StandIn() as server:
        assert ask(f"{host}:{server.port}") == "re: Hello"


@EITHER
def test_another_machine_is_reached_through_it(proxy: socket.socket, ask: Callable[[str], str]) -> None:
    refusing = Refusing(proxy)
    with pytest.raises(ServerError):
        ask("server.invalid:8001")
    assert refusing.asked().startswith("CONNECT server.invalid:8001 ")
