"""Wait until every worker of a LeaderWorkerSet group can be reached by ssh; mpirun gives up at once where one cannot.

``python3 wait_for_workers.py PORT SECONDS``, on the leader. Ends with 1 when the time is over.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from nvlm_trt.host.nodes import Nodes


def wait(hosts: tuple[str, ...], port: int, seconds: float) -> list[str]:
    """Hosts whose port was not open in time."""
    deadline = time.monotonic() + seconds
    closed = list(hosts)
    while closed:
        closed = [host for host in closed if not _is_open(host, port)]
        if not closed or time.monotonic() > deadline:
            break
        time.sleep(1)
    return closed


def _is_open(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    _, *workers = Nodes.of_group(os.environ).hosts
    missing = wait(tuple(workers), int(sys.argv[1]), float(sys.argv[2]))
    sys.stderr.write("".join(f"no worker at {host}:{sys.argv[1]}\n" for host in missing))
    sys.exit(1 if missing else 0)
