"""A proxy that refuses."""

from __future__ import annotations

import socket
import threading


class Refusing:
    """Refuses what the first connection to a socket asks of it.

    Args:
        bound: The socket.
    """

    def __init__(self, bound: socket.socket) -> None:
        bound.listen()
        self._bound = bound
        self._asked = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def asked(self) -> str:
        """The first line of what it was asked; waits for it."""
        self._thread.join()
        return self._asked.split(b"\r\n")[0].decode()

    def _run(self) -> None:
        connection, _ = self._bound.accept()
        with connection:
            while b"\r\n\r\n" not in self._asked and (part := connection.recv(65536)):
                self._asked += part
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
