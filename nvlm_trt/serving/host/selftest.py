"""Whether a server is ready, and whether tensors cross its Python backend unharmed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Final

TIMEOUT_SECONDS: Final = 10.0

ECHO: Final[dict[str, list[object]]] = {
    "UINT8": [5, 6, 7, 250],
    "BYTES": ["nvlm", "é漢🙂", ""],
    "FP32": [0.5, -1.25, 3.0],
}
"""Several different values of each type: the known fault repeats the first one or drops them all."""


def is_ready(url: str) -> bool:
    """Whether the server at ``host:port`` says that it and all its models are ready."""
    try:
        with urllib.request.urlopen(f"http://{url}/v2/health/ready", timeout=TIMEOUT_SECONDS) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def echo_works(url: str) -> bool:
    """Whether the model `selftest` of the server at ``host:port`` gives back what it was given."""
    tensors = [
        {"name": f"{dtype.lower()}_in", "datatype": dtype, "shape": [len(values)], "data": values}
        for dtype, values in ECHO.items()
    ]
    request = urllib.request.Request(
        f"http://{url}/v2/models/selftest/infer",
        data=json.dumps({"inputs": tensors}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    except (OSError, ValueError, KeyError):
        return False
    return outputs == {f"{dtype.lower()}_out": values for dtype, values in ECHO.items()}
