"""Asking over HTTP, against a server of a few lines: what is sent, and what is made of the events."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from nvlm_trt.bench.ask.served import STREAM_PATH, HttpAsker
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import RequestError, ServerError

PIECE = {"model_name": "nvlm", "finish_reason": "", "num_input_tokens": 40}
ANSWER = [
    {**PIECE, "text_output": "", "num_output_tokens": 1},
    {**PIECE, "text_output": "A c", "num_output_tokens": 2},
    {**PIECE, "text_output": "at.", "num_output_tokens": 3, "finish_reason": "length"},
]


@dataclass
class Stand:
    """A server that says `events` with `status`, and keeps what it was sent."""

    url: str = ""
    status: int = 200
    events: list[dict[str, Any]] = field(default_factory=lambda: [*ANSWER])
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.sent.append((self.path, body))
            self.send_response(made.status)
            self.end_headers()
            for event in made.events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"127.0.0.1:{server.server_port}"
        yield made
        server.shutdown()
        thread.join()


def test_a_request_holds_the_image_and_the_length_of_its_answer(stand: Stand) -> None:
    record = HttpAsker(stand.url, 3).ask(Question("A cat?", (b"picture",)))
    assert (record.prompt_tokens, record.output_tokens, record.images) == (40, 3, 1)
    assert 0 < record.ttft_s <= record.total_s
    assert (record.tiles, record.vision_s) == (None, None)
    ((path, body),) = stand.sent
    assert path == STREAM_PATH
    assert base64.b64decode(body.pop("image_bytes")[0]) == b"picture"
    assert body == {"text_input": "A cat?", "max_tokens": 3, "min_tokens": 3, "stream": True}


def test_a_text_is_sent_without_images(stand: Stand) -> None:
    assert HttpAsker(stand.url, 3).ask(Question("Why?", ())).images == 0
    assert "image_bytes" not in stand.sent[0][1]


def test_a_question_brings_its_history_and_the_length_of_its_answer(stand: Stand) -> None:
    record = HttpAsker(stand.url, 3).ask(Question("And now?", (b"picture",), (("<image>\nA cat?", "Yes."),), 1))
    assert record.ttft_s in record.arrivals_s
    assert len(record.arrivals_s) == 2  # of three events one has no text
    ((_, body),) = stand.sent
    assert json.loads(body["messages"]) == [
        {"role": "user", "content": "<image>\nA cat?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And now?"},
    ]
    assert "text_input" not in body
    assert (body["max_tokens"], body["min_tokens"]) == (1, 1)


def test_an_answer_without_text_begins_at_its_end(stand: Stand) -> None:
    stand.events = [{**ANSWER[-1], "text_output": ""}]
    record = HttpAsker(stand.url, 3).ask(Question("Why?", ()))
    assert record.ttft_s == record.total_s


@pytest.mark.parametrize(("status", "kind"), [(400, RequestError), (503, ServerError), (200, ServerError)])
def test_an_error_of_the_server_is_told(status: int, kind: type[Exception], stand: Stand) -> None:
    stand.status, stand.events = status, [{"error": "too many images"}]
    with pytest.raises(kind, match="too many images"):
        HttpAsker(stand.url, 3).ask(Question("Why?", ()))


def test_an_answer_that_breaks_off_is_no_answer(stand: Stand) -> None:
    stand.events = ANSWER[:2]
    with pytest.raises(ServerError, match="broke off"):
        HttpAsker(stand.url, 3).ask(Question("Why?", ()))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        HttpAsker("127.0.0.1:1", 3).ask(Question("Why?", ()))
