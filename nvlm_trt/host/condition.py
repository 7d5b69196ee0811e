"""Whether a running server is well: its processes live, move, and do not take ever more memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import psutil

from nvlm_trt.host.memory import Leak
from nvlm_trt.host.pulse import Pulse
from nvlm_trt.host.supervisor import Fault
from nvlm_trt.serving.heartbeat import read_beats
from nvlm_trt.serving.silence import Silence

SERVER: Final = "tritonserver"

SUSPICIOUS_SHARE: Final = 0.5
"""Of the seconds that mean hung: from then on it is seen whether signs of life could be given at all."""


class Condition:
    """Watches a server from the moment when it is ready.

    Args:
        server: Its process.
        children: Its ranks, model processes and others that have to live.
        beats: Directory of heartbeats.
        pulse: Asks the server itself.
        hang_timeout: Seconds without a sign of life, or without progress, that mean hung.
        shm_prefix: How the names of its shared memory begin.
        max_growth: Bytes by which one of its processes may grow; None for three quarters of the memory at hand.
    """

    def __init__(
        self,
        server: psutil.Process,
        children: Collection[psutil.Process],
        *,
        beats: Path,
        pulse: Pulse,
        hang_timeout: float,
        shm_prefix: str,
        max_growth: int | None,
    ) -> None:
        self._children = children
        self._beats = beats
        self._pulse = pulse
        self._hang_timeout = hang_timeout
        self._silence: Silence[str] = Silence()
        self._models = {beat.pid: beat.model for beat in read_beats(beats)}
        self._leak = Leak({SERVER: server, **self.named()}, shm_prefix, max_growth)

    def named(self) -> Mapping[str, psutil.Process]:
        """The children, by the names of their models where they have one."""
        return {self._name(child.pid): child for child in self._children}

    def fault(self) -> Fault | None:
        """What is wrong; None while it is well."""
        return self.dead() or self._hung() or self._leaking()

    def dead(self, expected: Collection[str] = ()) -> Fault | None:
        """A process that has ended, but for those of models that are expected to."""
        for child in self._children:
            if self._models.get(child.pid) in expected:
                continue
            if _has_ended(child):
                return Fault("dead", f"{self._name(child.pid)} ended")
        return None

    @property
    def is_urgent(self) -> bool:
        """Whether the machine is about to run out of memory because of a process that leaks."""
        return self._leak.is_urgent

    @property
    def ended_in_order(self) -> set[str]:
        """Models that were unloaded and have no request left; their processes end a little later."""
        if not self._beats.is_dir():  # somebody removed it: no model says anything
            return set()
        return set(self._models.values()) - {beat.model for beat in read_beats(self._beats)}

    def _hung(self) -> Fault | None:
        seen = read_beats(self._beats)
        self._models |= {beat.pid: beat.model for beat in seen}
        beats = {self._name(beat.pid): beat for beat in seen}
        marks: dict[str, object] = {self._name(pid): None for pid in self._models}  # none of them ends while it serves
        marks |= {name: beat.at for name, beat in beats.items()}
        quiet = self._silence.of({**marks, SERVER: self._pulse.count})
        if max(quiet.values()) > SUSPICIOUS_SHARE * self._hang_timeout and not _has_room(self._beats):
            self._silence = Silence()  # nobody can beat, and no other server could start: this one goes on
            return None
        for name, seconds in quiet.items():
            still = beats[name].still if name in beats else 0.0
            if still == math.inf:
                return Fault("hung", f"{name} hangs: a request there cannot be ended any more, the log says why")
            if max(seconds, still) > self._hang_timeout:
                sign = "no sign of life" if seconds >= still else "no progress"
                return Fault("hung", f"{name} hangs: {sign} for {max(seconds, still):.1f} s")
        return None

    def _leaking(self) -> Fault | None:
        what = self._leak.found()
        return Fault("leaking", what) if what else None

    def _name(self, pid: int) -> str:
        model = self._models.get(pid)
        return f"{model} (process {pid})" if model else f"process {pid}"


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return True


def _has_room(directory: Path) -> bool:
    """Whether files can be written there, as far as there is such a directory."""
    if not directory.is_dir():
        return True
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"room")
    except OSError:
        return False
    return True
