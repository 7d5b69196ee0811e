"""What is asked of a server while it starts: readiness, models to load, tensors to echo."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Final

from nvlm_trt.errors import ServerError
from nvlm_trt.loopback import DIRECT_OPENER

TIMEOUT_SECONDS: Final = 10.0
MAX_REASON: Final = 2000
"""Characters of a server's reason that are passed on."""

ECHO: Final[dict[str, list[object]]] = {
    "UINT8": [5, 6, 7, 250],
    "BYTES": ["nvlm", "é漢🙂", ""],
    "FP32": [0.5, -1.25, 3.0],
}
"""Several different values of each type: the known fault repeats the first one or drops them all."""


def is_ready(url: str) -> bool:
    """Whether the server at ``host:port`` says that it and all its models are ready."""
    try:
        with DIRECT_OPENER.open(f"http://{url}/v2/health/ready", timeout=TIMEOUT_SECONDS) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def unload_model(url: str, name: str, headers: dict[str, str]) -> bool:
    """Let the server at ``host:port`` take no more requests for a model; whether it has agreed.

    Those under way go on; when the last one has ended, `loaded_models` says so.
    """
    request = _post(url, f"repository/models/{name}/unload", {}, headers)
    try:
        with DIRECT_OPENER.open(request, timeout=TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def loaded_models(url: str, headers: dict[str, str]) -> dict[str, str] | None:
    """The state of each model of the server at ``host:port``; None if the server does not say.

    One that is being unloaded is "UNLOADING" while requests are under way, then "UNAVAILABLE".
    """
    request = _post(url, "repository/index", {}, headers)
    try:
        with DIRECT_OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return {model["name"]: model.get("state", "") for model in json.load(answer)}
    except (OSError, ValueError):
        return None


def load_model(url: str, name: str, headers: dict[str, str]) -> None:
    """Let the server at ``host:port`` load a model; returns when it is loaded, which may take many minutes.

    Raises:
        ServerError: the server could not load it, or ended meanwhile.
    """
    request = _post(url, f"repository/models/{name}/load", {}, headers)
    try:
        with DIRECT_OPENER.open(request):
            return
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")
    except OSError as error:
        said = str(error)
    raise ServerError(f"the model {name} could not be loaded", seen=said[:MAX_REASON])


def echo_works(url: str) -> bool:
    """Whether the model `selftest` of the server at ``host:port`` gives back what it was given."""
    tensors = [
        {"name": f"{dtype.lower()}_in", "datatype": dtype, "shape": [len(values)], "data": values}
        for dtype, values in ECHO.items()
    ]
    request = _post(url, "models/selftest/infer", {"inputs": tensors}, {})
    try:
        with DIRECT_OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    except (OSError, ValueError, KeyError):
        return False
    return outputs == {f"{dtype.lower()}_out": values for dtype, values in ECHO.items()}


def _post(url: str, path: str, body: dict[str, object], headers: dict[str, str]) -> urllib.request.Request:
    told = {"Content-Type": "application/json", **headers}
    return urllib.request.Request(f"http://{url}/v2/{path}", json.dumps(body).encode(), told)
