"""Requests as bytes on a connection: what no well-behaved client library would send."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
GENERATE = "/v2/models/nvlm/generate"
LEAKS = ("Traceback", ".py", "/work", "/tmp", "/home", "/usr", "0x", "object at", "<class", "PIL", "127.0.0.1", "errno")


@dataclass(frozen=True)
class Reply:
    """An answer and how long it took."""

    status: int
    body: bytes
    ms: float
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        error = self.json["error"]
        assert isinstance(error, dict)
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    @property
    def sentence(self) -> str:
        """What is said, in either form."""
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


def ask(
    address: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, method: str | None = None
) -> Reply:
    """One request on a connection of its own."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, timeout=60)
    began = time.perf_counter()
    try:
        connection.request(method or ("GET" if data is None else "POST"), path, data, dict(headers or {}))
        answer = connection.getresponse()
        read = answer.read()
        return Reply(answer.status, read, (time.perf_counter() - began) * 1000, dict(answer.getheaders()))
    finally:
        connection.close()


def say(address: str, pieces: Iterable[bytes], *, timeout: float = 30) -> Reply:
    """Bytes as they are; the connection has to be closed by the server."""
    host, port = address.split(":")
    began = time.perf_counter()
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # refused in the middle
        answer, first = b"", 0.0
        try:
            while data := connection.recv(65536):
                first = first or time.perf_counter() - began
                answer += data
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0
    return Reply(status, body, first * 1000)


def head(path: str, *lines: str) -> bytes:
    """The head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", "Content-Type: application/json", *lines, "", ""]).encode()


def data_uri(file: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(text: str = "What is it?", images: Iterable[str] = (), **more: object) -> dict[str, object]:
    """A chat with images by their URLs."""
    content = [{"type": "text", "text": text}, *map(image_part, images)]
    return {"model": "nvlm", "max_tokens": 6, "messages": [{"role": "user", "content": content}], **more}


def assert_clear(sentence: str) -> None:
    """One sentence, without a trace, a path, an address or the name of a type."""
    assert 8 < len(sentence) < 400, sentence
    assert "\n" not in sentence
    for leak in LEAKS:
        assert leak not in sentence, sentence
