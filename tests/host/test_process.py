"""One run of a server: what is said of one that ends while it starts. A program of a few lines stands for it."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvlm_trt.errors import ServerError
from nvlm_trt.host import process
from nvlm_trt.host.command import ServerOptions
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.process import TritonProcess
from nvlm_trt.host.supervisor import CrashedError, Fault
from nvlm_trt.loopback import LOOPBACK

SERVER = """#!{python}
import http.server, os, signal, sys

port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--http-port="))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        if "{crashes_at}" in self.path:
            print("E1130 07:28:26.1 1 a.cc:1] out of luck", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self.answer(b"{{}}")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Program:
    """An installation of that program."""

    binary: Path
    limits_bodies: bool = False

    def prepare_backends(self, directory: Path) -> Path:
        return directory

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        return {**os.environ, **extra}


@dataclass(frozen=True)
class Start:
    """Starts servers that crash in a request whose path has these words."""

    directory: Path
    ports: Ports

    def __call__(self, crashes_at: str, *load_order: str) -> TritonProcess:
        binary = self.directory / "server"
        binary.write_text(SERVER.format(python=sys.executable, crashes_at=crashes_at))
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        options = ServerOptions(self.directory / "models", LOOPBACK, self.ports, 1000, load_order=load_order)
        return TritonProcess(Program(binary), options, self.directory / "run")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    held = Ports(0, 0, 0).held(LOOPBACK)
    yield Start(tmp_path, held.ports)
    held.release()


@pytest.mark.parametrize(("crashes_at", "load_order"), [("selftest", ()), ("a_model/load", ("a_model",))])
def test_a_server_that_crashes_in_the_last_steps_of_its_start_is_said_to_have_crashed(start, crashes_at, load_order):
    server = start(crashes_at, *load_order)
    try:
        with pytest.raises(CrashedError, match="ended by SIGKILL while starting") as error:
            server.wait_ready(threading.Event())
        assert "out of luck" in str(error.value)
    finally:
        server.kill()


def test_a_server_that_lives_and_echoes_wrong_is_said_to_spoil_tensors(start, monkeypatch):
    monkeypatch.setattr(process, "EXIT_SECONDS", 0.1)
    server = start("nothing")
    try:
        with pytest.raises(ServerError, match=r"tensors do not cross .* check that numpy is 1.26; its log: "):
            server.wait_ready(threading.Event())
    finally:
        server.kill()


def test_a_look_that_the_system_refuses_tells_nothing_of_the_server(start, caplog):
    class Refused:
        looks = 0

        def fault(self) -> Fault | None:
            self.looks += 1
            if self.looks < 3:
                raise OSError(24, "Too many open files")
            return Fault("hung", "it hangs")

    server = start("nothing")
    try:
        server._condition = Refused()
        assert [server.fault(), server.fault()] == [None, None]
        assert [record.getMessage() for record in caplog.records] == ["the server cannot be watched"]
        assert server.fault() == Fault("hung", "it hangs")
    finally:
        server._condition = None
        server.kill()
