"""What a server's metrics port shows."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from nvlm_trt.host.server import TritonServer


def figures(server: TritonServer, prefix: str) -> dict[str, float]:
    """The figures whose names begin with the prefix, by the rest of the name."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(prefix)]
    return {name.split("{")[0].removeprefix(prefix): float(value) for name, value in found}


@contextmanager
def given_up(server: TritonServer, tokens: int) -> Iterator[None]:
    """Requests for so many tokens in all are left in the block: not half of them are decoded, and all places get free.

    Decoding that goes on ends by itself within seconds, so that only the count tells whether it was ended.
    """
    before = figures(server, "nvlm_decoder_")["tokens_total"]
    yield
    deadline, still = time.monotonic() + 60, 0
    while still < 2:  # what is shown may be a second old
        assert time.monotonic() < deadline, "there is still work"
        time.sleep(1.0)
        shown = figures(server, "nvlm_kv_")
        busy = server.process.active_requests() or shown["running_requests"] or shown["waiting_requests"]
        still = 0 if busy else still + 1
    decoded = figures(server, "nvlm_decoder_")["tokens_total"] - before
    assert decoded < tokens / 2, f"{decoded} tokens were decoded"
