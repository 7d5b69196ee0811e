"""An engine of others in a process of its own: lines of JSON go in and come out (`workers/serve.py`)."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from nvlm_trt.errors import ServerError

GRACE_S: Final = 10.0
"""Seconds that the process has to end after its last line."""

TAIL: Final = 400
"""Characters of its last words that are shown."""


class PeerProcess:
    """The process, from its start until it is closed. May be asked from several threads.

    Args:
        command: What is run.
        environment: Its variables.
        job: The first line.

    Raises:
        ServerError: it cannot be started, or could not load what the job says.

    Attributes:
        loaded: What it tells of loading: `load_s`, `before_bytes`, `settings`.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], job: Mapping[str, Any]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._lock = threading.Lock()
        self._waiting: dict[int | str, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._error: str | None = None
        self._ended = False
        try:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
            )
        except OSError as error:
            self._said.close()
            raise ServerError(f"{command[0]} cannot be run ({error.strerror})") from None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        try:
            answer = self._expect("loaded")
            self._listener.start()
            self._send(job)
            self.loaded: dict[str, Any] = self._answer(answer)["loaded"]
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask and wait for the whole answer.

        Args:
            request: With an `id` that no other has.

        Raises:
            ServerError: the process failed; with its reason or its last words.
        """
        answer = self._expect(int(request["id"]))
        self._send(request)
        return self._answer(answer)

    def peak_bytes(self) -> int:
        """Its largest resident set so far.

        Raises:
            ServerError: it failed.
        """
        answer = self._expect("usage")
        self._send({"usage": True})
        return int(self._answer(answer)["usage"]["peak_bytes"])

    def close(self) -> None:
        """End it."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError):
            stdin.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._listener.is_alive():
            self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()

    def _expect(self, key: int | str) -> queue.SimpleQueue[dict[str, Any] | None]:
        """Where an answer will come."""
        place: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            self._waiting[key] = place
            if self._ended:
                place.put(None)
        return place

    def _send(self, message: Mapping[str, Any]) -> None:
        line = (json.dumps(message) + "\n").encode()
        stdin = self._process.stdin
        assert stdin is not None
        with self._lock, suppress(BrokenPipeError):  # of one that ended, the listener tells
            stdin.write(line)
            stdin.flush()

    def _answer(self, place: queue.SimpleQueue[dict[str, Any] | None]) -> dict[str, Any]:
        found = place.get()
        if found is None:
            raise ServerError(f"the peer ended: {self._error or self._last_words()}")
        return found

    def _listen(self) -> None:
        """Give each answer to whoever waits for it; at the end of the process, tell everybody."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "error" in message:
                self._error = str(message["error"])
                continue
            key = next((key for key in ("loaded", "usage") if key in message), message.get("id"))
            with self._lock:
                place = self._waiting.pop(key)
            place.put(message)
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, {}
        for place in waiting.values():
            place.put(None)

    def _last_words(self) -> str:
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip()
        return words.splitlines()[-1][-TAIL:] if words else "it said nothing"
