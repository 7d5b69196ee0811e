"""URLs that lead inside, and servers that take their time (faults 10 and 11)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from nvlm_trt.gateway.fetch import Fetcher, is_public
from nvlm_trt.gateway.settings import Limits

from .conftest import FaultRecord, OpenDoor, Watch
from .internet import Web, resolving
from .served import Served
from .wire import CHAT, ask, assert_clear, chat

Begin = Callable[[], Watch]

INSIDE = (
    "http://127.0.0.1/",
    "http://localhost/",
    "http://localhost:8000/metrics",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0.0.0.0/",
    "http://10.0.0.1/",
    "http://example.com@127.0.0.1/",
    "http://img.example.com\\@127.0.0.1/",
    "http://127.0.0.1#.example.com/",
    "http://img.example.com:22/",
    "file:///etc/passwd",
    "ftp://img.example.com/a.png",
    "gopher://127.0.0.1:70/_",
    "//127.0.0.1/",
    "/etc/passwd",
    "",
)


@pytest.fixture(scope="module")
def listener() -> Iterator[list[str]]:
    """Who connects to port 80 or 8000 of this machine: the tests want nobody to."""
    came: list[str] = []
    with contextlib.ExitStack() as stack:
        for port in (80, 8000):
            with contextlib.suppress(OSError):  # in use, or not ours to use
                server = stack.enter_context(socket.create_server(("127.0.0.1", port)))
                threading.Thread(target=_accept, args=(server, came), daemon=True).start()
        yield came


def _accept(server: socket.socket, came: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            came.append("somebody")
            connection.close()


@pytest.mark.fault(case=10)
@pytest.mark.parametrize("url", INSIDE)
def test_a_url_that_leads_inside_is_refused_though_its_host_is_listed(
    served: Served, listener: list[str], fault_record: FaultRecord, url: str
) -> None:
    answer = ask(served.http, CHAT, chat(images=[url]))
    assert answer.status == 400
    assert answer.error["code"] == "url_not_allowed"
    assert_clear(answer.sentence)
    assert not listener
    fault_record(time_ms=answer.ms, variant=url or "nothing")


@pytest.mark.fault(case=10)
def test_without_listed_domains_none_is_fetched(beside: Callable[..., str], fault_record: FaultRecord) -> None:
    answer = ask(beside(Fetcher((), 1000)), CHAT, chat(images=["http://img.example.com/a.png"]))
    assert (answer.status, answer.error["code"]) == (400, "url_not_allowed")
    fault_record(time_ms=answer.ms, variant="no domain is listed")


@pytest.fixture
def beside(door: OpenDoor, limits: Limits) -> Callable[..., str]:
    """The address of a further gateway in front of the same server, with a fetcher of its own."""
    return lambda fetcher, **more: door(replace(limits, **more), fetcher=fetcher).address


@pytest.mark.fault(case=10)
@pytest.mark.parametrize(
    "target",
    [
        "http://inside.example.com/",
        "http://169.254.169.254/latest",
        "http://unlisted.org/",
        "file:///etc/passwd",
        "http://[::1]/",
    ],
)
def test_a_redirect_inside_is_refused(
    internet: Web, beside: Callable[..., str], fault_record: FaultRecord, target: str
) -> None:
    """The first host is taken as public, whatever its address here; where it leads to is not."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host in ("img.example.com", "unlisted.org") else ["169.254.169.254"]

    fetcher = Fetcher(
        ("*.example.com", f"img.example.com:{internet.port}"), 1 << 20, resolve=resolve, allowed=only_this_machine
    )
    answer = ask(beside(fetcher), CHAT, chat(images=[f"http://img.example.com:{internet.port}/to/{target}"]))
    assert (answer.status, answer.error["code"]) == (400, "url_not_allowed")
    assert_clear(answer.sentence)
    assert internet.seen[-1] == f"to/{target}"
    fault_record(time_ms=answer.ms, variant=f"redirected to {target}")


def only_this_machine(address: str) -> bool:
    """Takes the machine of the tests for public, and nothing else that is not."""
    return address == "127.0.0.1" or is_public(address)


@pytest.mark.fault(case=10)
def test_a_second_answer_of_dns_changes_nothing(
    internet: Web, beside: Callable[..., str], fault_record: FaultRecord
) -> None:
    """Rebinding: resolved once, and connected to that; a later answer is judged like the first one."""
    host = f"img.example.com:{internet.port}"
    fetcher = Fetcher(
        (host,), 1 << 20, resolve=resolving(["127.0.0.1"], ["169.254.169.254"]), allowed=only_this_machine
    )
    address = beside(fetcher)
    first = ask(address, CHAT, chat(images=[f"http://{host}/red.png"]))
    assert first.status == 200, first.body
    assert internet.seen[-1] == "red.png"  # where the first answer of DNS leads to
    second = ask(address, CHAT, chat(images=[f"http://{host}/red.png"]))
    assert (second.status, second.error["code"]) == (400, "url_not_allowed")
    fault_record(time_ms=second.ms, variant="DNS rebinding")


SLOW = {
    "1 byte at a time": ("slow", 400, "url_timeout"),
    "endless": ("endless", 400, "image_too_large"),
    "404": ("missing", 400, "url_not_fetched"),
    "a page": ("page", 400, "url_not_fetched"),
}


@pytest.mark.fault(case=11)
@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_is_slow_endless_or_has_no_image_holds_nobody_up(
    served: Served,
    internet: Web,
    beside: Callable[..., str],
    watch: Begin,
    fault_record: FaultRecord,
    name: str,
) -> None:
    path, status, code = SLOW[name]
    host = f"img.example.com:{internet.port}"
    fetcher = Fetcher((host,), 8 << 20, resolve=resolving(["127.0.0.1"]), allowed=lambda _: True)
    address = beside(fetcher, fetch_time=1.0)
    began = watch()
    answer = ask(address, CHAT, chat(images=[f"http://{host}/{path}"]))
    good = ask(address, CHAT, chat("Hello"))
    growth, seen = began.end()
    assert (answer.status, answer.error["code"]) == (status, code)
    assert_clear(answer.sentence)
    assert answer.ms < 15_000
    assert good.status == 200
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=name)


@pytest.mark.fault(case=11)
def test_others_are_answered_while_many_wait_for_a_slow_server(
    internet: Web, beside: Callable[..., str], watch: Begin, fault_record: FaultRecord
) -> None:
    host = f"img.example.com:{internet.port}"
    fetcher = Fetcher((host,), 8 << 20, resolve=resolving(["127.0.0.1"]), allowed=lambda _: True)
    address = beside(fetcher, fetch_time=30)
    body = chat(images=[f"http://{host}/slow"])
    waiting = [threading.Thread(target=ask, args=(address, CHAT, body)) for _ in range(30)]
    began = watch()
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    good = [ask(address, CHAT, chat("Hello")) for _ in range(5)]
    alive = [thread.is_alive() for thread in waiting]
    internet.patience = False
    for thread in waiting:
        thread.join()
    _, seen = began.end()
    assert all(alive), "the slow ones were done before the others were answered"
    assert all(answer.status == 200 for answer in good)
    slowest = max(answer.ms for answer in good)
    fault_record(others=f"{seen}; slowest of 5 chats {slowest:.0f} ms", variant="30 at once")
