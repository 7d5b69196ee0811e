"""`nvlm-trt serve` as a process of its own, and what its processes hold."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


class Served:
    """A server that is hurt from outside; a context manager.

    Args:
        engine_dir: What it serves.
        options: Further options of `nvlm-trt serve`.

    Attributes:
        http: ``host:port`` of the gateway.
        grpc: ``host:port`` of tritonserver's gRPC.
        metrics: ``host:port`` of tritonserver's metrics.
        said: Its standard error.
    """

    def __init__(self, engine_dir: Path, options: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "nvlm_trt.cli.main", "serve", str(engine_dir), "--json"]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *options]
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it is stopped
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.said, text=True)
        assert self.process.stdout is not None
        event = json.loads(self.process.stdout.readline() or "{}")
        if event.get("event") != "ready":
            log = self.log
            self.stop()
            raise AssertionError(f"the server did not start: {event} {log[-2000:]}")
        self.http: str = event["http"]
        self.grpc: str = event["grpc"]
        self.metrics: str = event["metrics"]

    @property
    def log(self) -> str:
        """What it has said to its operator."""
        return os.pread(self.said.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def gateway(self) -> psutil.Process:
        """The process of the gateway and the supervisor."""
        return psutil.Process(self.process.pid)

    @property
    def processes(self) -> list[psutil.Process]:
        """All of its processes."""
        return [self.gateway, *self.gateway.children(recursive=True)]

    def stub(self, model: str) -> psutil.Process:
        """The process of a model."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"/{model}/" in " ".join(process.cmdline()):
                    return process
        raise AssertionError(f"no process of {model}")

    def stop(self) -> int:
        """End it as an operator does; its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self.said.close()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class MemoryPeak:
    """How much more memory processes held at their peaks than at the beginning, all together.

    The kernel keeps the peak of each process; it begins anew when this is made.
    """

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._before: dict[int, float] = {}
        for process in processes:
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
                self._before[process.pid] = _status(process.pid, "VmRSS")

    def growth(self) -> float:
        """Megabytes, at the peaks."""
        return self._more("VmHWM")

    def left(self) -> float:
        """Megabytes that are still held."""
        return self._more("VmRSS")

    def _more(self, name: str) -> float:
        grown = 0.0
        for pid, before in self._before.items():
            with contextlib.suppress(OSError):
                grown += max(0.0, _status(pid, name) - before)
        return grown


def _status(pid: int, name: str) -> float:
    """A size of a process in megabytes; OSError where it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(name)


def wait_until(holds, seconds: float, what: str) -> float:  # type: ignore[no-untyped-def]
    """Seconds until something holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.01)
    return time.monotonic() - began
