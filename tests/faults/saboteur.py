"""Models that break when they are told to: the real ones, and a thread that waits for orders.

A process can be killed and stopped from outside. To hold the interpreter's lock, to wait for what never comes and to
take ever more memory, it has to be asked from within.
"""

from __future__ import annotations

import shutil
from pathlib import Path

REPOSITORY = "triton_repo"

MODEL = '''"""{model}, which obeys orders."""

import ctypes
import threading
import time
from pathlib import Path

from nvlm_trt.serving.models.{model} import TritonPythonModel as Real

ORDERS = Path({orders!r})


def never(*args, **kwargs):
    threading.Event().wait()


class TritonPythonModel(Real):
    def load(self):
        super().load()
        threading.Thread(target=self._obey, daemon=True).start()

    def _obey(self):
        while True:
            time.sleep(0.02)
            for order in list(ORDERS.glob("{model}.*")):
                order.unlink()
                getattr(self, "_" + order.suffix[1:])()

    def _hold_lock(self):
        ctypes.PyDLL(None).sleep(600)  # of this kind, a call keeps the interpreter's lock

    def _wait(self):
        if hasattr(self, "loop"):
            self.loop.call_soon_threadsafe(never)
        elif hasattr(self, "engine"):
            self.engine._session.run = never
        elif hasattr(self, "encoder"):
            self.encoder._runner = type("Stuck", (), {{"encode": never, "check": lambda *_: None}})()
        else:
            self.each = never_each(self)

    def _hold_send(self):
        self.server._outbox.put(never)

    def _grow(self):
        self.kept = []
        while True:
            self.kept.append(b"x" * (8 << 20))
            time.sleep(0.05)


def never_each(model):
    def each(requests, run):
        return Real.each(model, requests, never)
    return each
'''


class Sabotaged:
    """A copy of an engine directory whose model processes obey orders.

    Args:
        engine_dir: A packaged engine of the cpu target.
        place: An empty directory.

    Attributes:
        engine_dir: The copy.
    """

    def __init__(self, engine_dir: Path, place: Path) -> None:
        self.engine_dir = place / "engine"
        self._orders = place / "orders"
        self._orders.mkdir()
        shutil.copytree(engine_dir, self.engine_dir)
        for file in (self.engine_dir / REPOSITORY).glob("*/1/model.py"):
            file.write_text(MODEL.format(model=file.parents[1].name, orders=str(self._orders)))

    def order(self, model: str, what: str) -> None:
        """Let a model's process "hold_lock", "wait" or "grow"; its replacement will not."""
        (self._orders / f"{model}.{what}").touch()
