"""Post JSON to a server and look at its answer, whatever its status."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What an HTTP call gave: the status and the body."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        """The body as one JSON object."""
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed

    @property
    def events(self) -> list[dict[str, object]]:
        """The body as server-sent events."""
        lines = [line for line in self.body.decode().splitlines() if line]
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]


def post_json(address: str, path: str, body: object) -> HttpAnswer:
    """Post a JSON body (or raw bytes) to a path below /v2 of the server at an address, host and port."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v2/{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return HttpAnswer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return HttpAnswer(error.code, error.read())
