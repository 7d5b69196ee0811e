"""Fuzz the gateway of a real server through its own OpenAPI document, with schemathesis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from scripts.soak.run import IDLE, wait_idle
from scripts.soak.server import Running, own_server
from scripts.soak.watch import Sample

CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""Those that mean something here. Not positive_data_acceptance: a schema cannot say which models there are, or how long
a prompt may be."""

FAULTS: Final = ("Traceback", "a request failed")
"""What the server's log must not hold: each is a request that nobody had thought of."""


def fuzz(engine_dir: Path, limit: int, out: Path, seed: int) -> int:
    """Fuzz for `limit` seconds; 0 without a finding, 1 with one."""
    log = out / "server.log"
    with own_server(engine_dir, log) as server:
        before = asyncio.run(wait_idle(server))
        told = _schemathesis(server, limit, out, seed)
        after = asyncio.run(wait_idle(server))
    faults = [*_faults(before, after), *(f"the log holds {word!r}" for word in FAULTS if word in log.read_text())]
    print("\n".join(faults) or "the server is as it was before")
    return 1 if told or faults else 0


def _schemathesis(server: Running, limit: int, out: Path, seed: int) -> int:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{server.http}/openapi.json"),
        *(f"--checks={','.join(CHECKS)}", "--phases=examples,coverage,fuzzing,stateful", "--mode=all"),
        *(f"--max-time={limit}", f"--seed={seed}", "--continue-on-failure", "--request-timeout=60"),
        *("--suppress-health-check=all", "--warnings=off", "--report=junit", f"--report-dir={out}"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": f"{__package__}.hooks"}
    with (out / "schemathesis.log").open("w") as words:
        code = subprocess.run(command, env=environment, stdout=words, stderr=subprocess.STDOUT, check=False).returncode
    print((out / "schemathesis.log").read_text())
    return code


def _faults(before: Sample, after: Sample) -> list[str]:
    faults = [f"{name} is {after.figures[name]:g}" for name in IDLE if after.figures[name]]
    if {one.pid for one in before.processes.values()} != {one.pid for one in after.processes.values()}:
        faults.append("processes came or went")
    if after.restarts:
        faults.append("the server was replaced")
    if after.fds - before.fds > 16:
        faults.append(f"{after.fds - before.fds} file descriptors are left")
    return faults
