"""What `nvlm-trt serve` would run, for people who look before they start something or who start it otherwise."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvlm_trt.host.command import ADMIN_HEADER, ServerOptions, server_command
from nvlm_trt.host.environment import IMAGE, ImageTriton, Installation, Triton
from nvlm_trt.loopback import LOOPBACK

ADMIN_KEY: Final = "ADMIN_KEY"
SHM_PREFIX: Final = "nvlm_trt_"
RUNTIME: Final = Path("/run/nvlm-trt")
"""Stands for the directory that every start makes anew."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The commands of a start.

    Attributes:
        directory: Where to run them.
        command: The server; `ADMIN_KEY` stands for a key that every start makes anew, `HTTP_PORT` and its like for
            a port that every start chooses (behind the gateway, HTTP's always is one).
        load_order: Models to load, in this order, once the server is ready.
        http_port: The server's port, or its `HTTP_PORT`.
    """

    directory: Path
    command: tuple[str, ...]
    load_order: tuple[str, ...]
    http_port: str

    @classmethod
    def of(cls, options: ServerOptions, target: str) -> LaunchPlan:
        """The plan of a server; the image of the gpu target need not be here.

        Raises:
            EngineError: the cpu target cannot be served in this environment.
        """
        installation: Installation = Triton.find() if target == "cpu" else ImageTriton(IMAGE)
        backends = RUNTIME / "backends" if target == "cpu" else installation.prepare_backends(RUNTIME)
        command = server_command(installation, options, backends=backends, shm_prefix=SHM_PREFIX, admin_key=ADMIN_KEY)
        return cls(options.repository.parent, tuple(command), options.load_order, options.ports.words()[0])

    def lines(self) -> list[str]:
        """The commands for a shell."""
        base = f"http://{LOOPBACK}:{self.http_port}/v2/repository/models"
        loads = (
            ("curl", "--fail", "-H", f"{ADMIN_HEADER}: {ADMIN_KEY}", "-d", "{}", f"{base}/{model}/load")
            for model in self.load_order
        )
        return [f"cd {shlex.quote(str(self.directory))}", shlex.join(self.command), *map(shlex.join, loads)]
