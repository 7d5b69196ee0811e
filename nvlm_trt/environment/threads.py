"""How torch's threads wait for each other."""

from __future__ import annotations

import os
from typing import Final

WAIT_POLICY: Final = "OMP_WAIT_POLICY"


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads give up their core while they wait, unless the environment says otherwise.

    They spin by default. Where another program, or OpenVINO's own threads, wants the cores, a thread then spins while
    the one that it waits for cannot run: verifying the shipped miniature took 1.8 to 2.8 times the processor time.
    To be called before torch is loaded, which reads the variable then; it has no effect afterwards.
    """
    os.environ.setdefault(WAIT_POLICY, "passive")
