"""What a server's metrics port shows."""

from __future__ import annotations

import urllib.request

from nvlm_trt.serving.host.server import TritonServer


def figures(server: TritonServer, prefix: str) -> dict[str, float]:
    """The figures whose names begin with the prefix, by the rest of the name."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(prefix)]
    return {name.split("{")[0].removeprefix(prefix): float(value) for name, value in found}
