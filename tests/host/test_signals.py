"""A server that is asked to stop by a signal stops, wherever the signal meets it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, threading
from nvlm_trt.host.signals import on_signals

heard = threading.Semaphore(0)
event = threading.Event()

def act():
    event.set()
    heard.release()

on_signals(act)
for name in (signal.SIGTERM, signal.SIGINT):
    event.clear()
    with event._cond:  # where a thread that waits for the event is for a moment
        os.kill(os.getpid(), name)
    assert heard.acquire(timeout=5)
    assert event.is_set()
mask = open("/proc/self/status").read().split("SigBlk:")[1].split()[0]
assert int(mask, 16) == 0  # what children begin with
print("done")
"""


def test_a_signal_that_meets_the_main_thread_within_the_lock_of_an_event_sets_it() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
