"""An upgrade behind nginx with two real servers: nobody's answer is cut short."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import pytest
import urllib3

from ..faults.served import Served
from .proxy import NGINX, Proxy, wait_until

CHAT = "/v1/chat/completions"
STREAMS = 4
PATIENT = "--limit=queue_time=600"
"""A machine that is busy otherwise shall refuse nobody."""


def port(server: Served) -> int:
    return int(server.http.split(":")[1])


@pytest.mark.chaos
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_answers_of_the_old_server_come_whole_and_the_new_one_takes_over(tiny_engine: Path, tmp_path: Path) -> None:
    def body(tokens: int, *, stream: bool) -> bytes:
        message = {"role": "user", "content": "What is it?"}
        asked = {"model": "nvlm", "messages": [message], "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        return json.dumps(asked).encode()

    whole: list[bytes] = []
    others: list[int] = []
    begun = threading.Barrier(STREAMS + 1)
    ended = threading.Event()

    def stream() -> None:
        answer = proxy.stream("POST", CHAT, body(200, stream=True))
        first = answer.read(1)
        begun.wait(60)
        whole.append(first + answer.data)

    def go_on_asking() -> None:
        while not ended.is_set():
            with contextlib.suppress(urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError):
                others.append(proxy.ask("POST", CHAT, body(1, stream=False)).status)

    with (
        Served(tiny_engine, [PATIENT, "--grace", "120"]) as old,
        Served(tiny_engine, [PATIENT]) as new,
        Proxy(tmp_path, gateway=port(old)) as proxy,
    ):
        threads = [*(threading.Thread(target=stream) for _ in range(STREAMS)), threading.Thread(target=go_on_asking)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        proxy.servers(gateway=port(new))
        proxy.reload()
        asked = len(others)
        wait_until(lambda: len(others) >= asked + 2, "the request that was under way is answered, and one after it", 60)
        assert old.stop() == 0
        ended.set()
        for thread in threads:
            thread.join(60)
    assert set(others) == {200}
    assert len(whole) == STREAMS
    for answer in whole:
        events = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: ")]
        assert events[-1] == b"[DONE]"
        assert b'"finish_reason":"length"' in events[-2].replace(b": ", b":")
