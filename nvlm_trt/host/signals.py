"""SIGTERM and SIGINT, heard in a thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def on_signals(act: Callable[[], None]) -> None:
    """Call something at each SIGTERM and SIGINT from now on, one after the other; for the main thread.

    A handler interrupts the main thread anywhere, also where it holds the lock of an event that it waits for: a handler
    that sets this event waits for ever. So handlers only put a mark, which may be done anywhere, and a thread acts.
    """
    marks: SimpleQueue[int] = SimpleQueue()

    def run() -> None:
        while True:
            marks.get()
            act()

    for name in SIGNALS:
        signal.signal(name, lambda number, _: marks.put(number))
    threading.Thread(target=run, name="nvlm-signals", daemon=True).start()
