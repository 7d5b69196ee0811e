"""Images behind URLs: listed domains alone, one resolution, public addresses, a cap on every byte."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.fetch import Fetcher, Hold, SystemResolver, is_public

FILE = b"\xff\xd8 the bytes of an image"
LIMIT = 1000


async def handle(request: web.Request) -> web.StreamResponse:
    """A server with good and bad images."""
    where = request.path
    if where.startswith("/to/"):
        return web.Response(status=302, headers={"Location": request.query["url"]})
    if where == "/large":
        return web.Response(body=bytes(LIMIT + 1), content_type="image/png")
    if where == "/page":
        return web.Response(text="<html>", content_type="text/html")
    if where == "/image":
        return web.Response(body=FILE, content_type="image/jpeg")
    if where in ("/endless", "/slow"):
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 100)
            await asyncio.sleep(0 if where == "/endless" else 0.05)
    return web.Response(status=404)


@asynccontextmanager
async def a_server() -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


class Names:
    """A resolver that says what it is told, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def fetch(
    path: str,
    names: Names | None = None,
    *,
    domains: Sequence[str] = ("pictures.example:{port}",),
    host: str = "pictures.example",
    allowed: Callable[[str], bool] = lambda address: True,
    hold: Hold = lambda size: None,
) -> bytes:
    async def run() -> bytes:
        async with a_server() as port:
            listed = [domain.format(port=port) for domain in domains]
            fetcher = Fetcher(listed, LIMIT, resolve=names or Names(["127.0.0.1"]), allowed=allowed)
            async with asyncio.timeout(20):
                return await fetcher.fetch(f"http://{host}:{port}{path}".replace("PORT", str(port)), hold)

    return asyncio.run(run())


def refused(path: str, code: str, names: Names | None = None, **more: object) -> None:
    with pytest.raises(ApiError) as refusal:
        fetch(path, names, **more)  # type: ignore[arg-type]
    assert (refusal.value.status, refusal.value.code) == (400, code)


def test_an_image_of_a_listed_domain_is_fetched_from_the_address_that_was_resolved() -> None:
    names = Names(["127.0.0.1"])
    assert fetch("/image", names) == FILE
    assert names.asked == ["pictures.example"]


def test_names_below_a_domain_are_listed_by_a_star() -> None:
    assert fetch("/image", domains=["*.example:{port}"]) == FILE
    refused("/image", "url_not_allowed", domains=["*.pictures.example:{port}"])


@pytest.mark.parametrize("domains", [(), ("other.example:{port}",), ("pictures.example",), ("ictures.example:{port}",)])
def test_what_is_not_listed_is_neither_resolved_nor_asked(domains: Sequence[str]) -> None:
    names = Names(["127.0.0.1"])
    refused("/image", "url_not_allowed", names, domains=domains)
    assert names.asked == []


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    *("fec0::1", "64:ff9b:1::7f00:1", "::ffff:0:127.0.0.1", "::7f00:1", "::ffff:0:8.8.8.8", "::808:808", "4000::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    assert not is_public(address)
    refused("/image", "url_not_allowed", Names([address]), allowed=is_public)
    refused("/image", "url_not_allowed", Names(["93.184.215.14", address]), allowed=is_public)


PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "[::1]", "localhost", "127.1"])
def test_an_address_in_the_url_is_no_way_round(host: str) -> None:
    refused("/image", "url_not_allowed", host=host)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://pictures.example/x", "gopher://pictures.example", "//pictures.example/x", "x"),
        *("http://user@pictures.example/x", "http://user:word@pictures.example/x", "http:///x", "http://[::1/x"),
        *("http://other.example\\@pictures.example/x", "http://pictures.example\n.other/x", "http://" + "a" * 5000),
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    fetcher = Fetcher(["pictures.example"], LIMIT, resolve=Names(["127.0.0.1"]), allowed=lambda address: True)
    with pytest.raises(ApiError, match="not allowed"):
        asyncio.run(fetcher.fetch(url, lambda size: None))


def test_a_redirect_passes_the_same_checks() -> None:
    assert fetch("/to/?url=/image") == FILE
    refused("/to/?url=http://127.0.0.1:PORT/image", "url_not_allowed")
    refused("/to/?url=http://other.example:PORT/image", "url_not_allowed")
    refused("/to/?url=file:///etc/passwd", "url_not_allowed")
    refused("/to/?url=/to/?url=/to/?url=/to/?url=/to/?url=/to/", "url_not_fetched")


def test_a_second_answer_of_dns_is_judged_like_the_first() -> None:
    """A name that turns private between a page and its redirect."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    refused("/to/?url=/image", "url_not_allowed", names, allowed=lambda address: address == "127.0.0.1")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing", "url_not_fetched"),
        ("/page", "url_not_fetched"),
        ("/large", "image_too_large"),
        ("/endless", "image_too_large"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused(path: str, code: str) -> None:
    refused(path, code)


def test_bytes_are_held_as_they_come_and_fetched_no_further_where_there_is_no_room() -> None:
    sizes: list[int] = []
    fetch("/image", hold=sizes.append)
    assert sum(sizes) == len(FILE)

    def full(size: int) -> None:
        raise ApiError(503, "no room", code="overloaded")

    with pytest.raises(ApiError, match="no room"):
        fetch("/slow", hold=full)


def test_a_slow_server_is_given_up_by_whoever_set_the_time() -> None:
    async def run() -> None:
        async with a_server() as port:
            fetcher = Fetcher(
                [f"a.example:{port}"], 1 << 30, resolve=Names(["127.0.0.1"]), allowed=lambda address: True
            )
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await fetcher.fetch(f"http://a.example:{port}/slow", lambda size: None)

    asyncio.run(run())


def test_a_server_that_is_not_there_is_a_refusal() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    for resolve in (nowhere, Names(["127.0.0.1"])):
        fetcher = Fetcher(["a.example:1"], LIMIT, resolve=resolve, allowed=lambda address: True)
        with pytest.raises(ApiError, match="cannot be fetched"):
            asyncio.run(fetcher.fetch("http://a.example:1/x", lambda size: None))


def answer_lookups(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    """Answer the resolver's threads; others of the process, such as one that watches a server, ask the system."""
    system = socket.getaddrinfo

    def ask(*arguments: Any, **options: Any) -> Any:
        ours = threading.current_thread().name.startswith("nvlm-dns")
        return (answer if ours else system)(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)


def test_a_dns_that_does_not_answer_keeps_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    answer_lookups(monkeypatch, lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 80))] * answered.wait(30))

    async def others() -> list[str]:
        resolve = SystemResolver()
        waiting = [asyncio.create_task(resolve(f"{number}.example.com", 80)) for number in range(64)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: 1) == 1
        answered.set()
        return list((await asyncio.gather(*waiting))[-1])

    assert asyncio.run(others()) == ["192.0.2.1"]


class SlowDns:
    """Stands for the system's resolver: says nothing of names that begin with slow until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        answer_lookups(monkeypatch, self._ask)

    def _ask(self, host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        self.asked.append(host)
        if host.startswith("slow"):
            self.answers.wait(30)
        if host.endswith(".none"):
            raise socket.gaierror("no such host")
        return [(0, 0, 0, "", ("192.0.2.1", port))]


def test_a_domain_whose_dns_is_slow_takes_one_thread_however_many_ask_and_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dns = SlowDns(monkeypatch)

    async def run() -> None:
        resolve = SystemResolver()
        fetcher = Fetcher(["slow.example"], LIMIT, resolve=resolve, allowed=lambda address: False)
        for number in range(64):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await fetcher.fetch(f"http://Slow.example{'.' * (number % 2)}/{number}", lambda size: None)
        async with asyncio.timeout(10):
            assert await resolve("quick.example", 80) == ["192.0.2.1"]
            last = [asyncio.create_task(resolve("slow.example", 80)) for _ in range(2)]
            await asyncio.sleep(0)
            dns.answers.set()
            assert await asyncio.gather(*last) == [["192.0.2.1"]] * 2

    asyncio.run(run())
    assert dns.asked == ["slow.example", "quick.example"]


def test_all_who_wait_for_a_host_are_told_that_it_has_no_address_and_it_is_asked_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dns = SlowDns(monkeypatch)

    async def run() -> None:
        resolve = SystemResolver()
        waiting = [asyncio.create_task(resolve("slow.none", 80)) for _ in range(3)]
        await asyncio.sleep(0)
        dns.answers.set()
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in told] == [socket.gaierror] * 3
        with pytest.raises(OSError, match="no such host"):
            await resolve("slow.none", 80)

    asyncio.run(run())
    assert dns.asked == ["slow.none"] * 2


def test_a_lookup_that_nobody_waits_for_any_more_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    dns = SlowDns(monkeypatch)

    async def run() -> None:
        resolve = SystemResolver()
        busy = [asyncio.create_task(resolve(f"slow{number}.example", 80)) for number in range(16)]
        await asyncio.sleep(0)
        two = [asyncio.create_task(resolve("queued.example", 80)) for _ in range(2)]
        await asyncio.sleep(0)
        for one in two:
            one.cancel()
        await asyncio.gather(*two, return_exceptions=True)
        dns.answers.set()
        await asyncio.gather(*busy)

    asyncio.run(run())
    assert len(dns.asked) == 16
