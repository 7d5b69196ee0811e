"""What a server's processes show, and what is made of it."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nvlm_trt.environment.memory import Memory
from nvlm_trt.host import memory
from nvlm_trt.host.condition import Condition
from nvlm_trt.host.memory import Leak
from nvlm_trt.host.shm import region_bytes
from nvlm_trt.host.supervisor import Fault
from nvlm_trt.serving.silence import Silence

GROWS = """
import sys
kept = []
for line in sys.stdin:
    kept.append(b"x" * (int(line) << 20))
    print(flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that takes as many MiB as it is told."""
    with subprocess.Popen(
        [sys.executable, "-c", GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def take(process: subprocess.Popen[str], mebibytes: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    print(mebibytes, file=process.stdin, flush=True)
    process.stdout.readline()


def condition(child: subprocess.Popen[str], beats: Path, pulse: SimpleNamespace) -> Condition:
    own = psutil.Process()
    return Condition(
        own,
        [psutil.Process(child.pid)],
        beats=beats,
        pulse=pulse,  # type: ignore[arg-type]
        hang_timeout=0.3,
        shm_prefix="nvlm_trt_nobody",
        max_growth=None,
    )


def beat(beats: Path, pid: int, still: float = 0.0) -> None:
    (beats / f"decoder.{pid}").write_text(f"{time.monotonic()} 0 {still}")


def wait_for_fault(watched: Condition, pulse: SimpleNamespace) -> Fault | None:
    """What becomes wrong with a server that itself answers; None where nothing does."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pulse.count += 1
        time.sleep(0.05)
        if (fault := watched.fault()) is not None:
            return fault
    return None


def test_a_server_is_well_while_it_and_its_processes_move(child, tmp_path):
    pulse = SimpleNamespace(count=0)
    beat(tmp_path, child.pid)
    watched = condition(child, tmp_path, pulse)
    for _ in range(10):
        beat(tmp_path, child.pid)
        pulse.count += 1
        time.sleep(0.05)
        assert watched.fault() is None


def test_a_process_that_ended_is_named_by_its_model(child, tmp_path):
    beat(tmp_path, child.pid)
    watched = condition(child, tmp_path, SimpleNamespace(count=0))
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while watched.dead() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    fault = watched.fault()
    assert fault is not None
    assert (fault.reason, fault.what) == ("dead", f"decoder (process {child.pid}) ended")
    assert watched.dead(expected=["decoder"]) is None


def test_a_process_without_a_heartbeat_hangs(child, tmp_path):
    pulse = SimpleNamespace(count=0)
    beat(tmp_path, child.pid)
    fault = wait_for_fault(condition(child, tmp_path, pulse), pulse)
    assert fault is not None
    assert fault.reason == "hung"
    assert fault.what.startswith(f"decoder (process {child.pid}) hangs: no sign of life for ")


def test_a_process_that_beats_without_progress_hangs(child, tmp_path):
    watched = condition(child, tmp_path, SimpleNamespace(count=0))
    beat(tmp_path, child.pid, still=0.2)
    assert watched.fault() is None
    beat(tmp_path, child.pid, still=0.4)
    fault = watched.fault()
    assert fault is not None
    assert (fault.reason, fault.what.partition(": ")[2]) == ("hung", "no progress for 0.4 s")


def test_a_process_that_cannot_end_a_request_hangs_at_once(child, tmp_path):
    watched = condition(child, tmp_path, SimpleNamespace(count=0))
    beat(tmp_path, child.pid, still=math.inf)
    fault = watched.fault()
    assert fault is not None
    assert (fault.reason, fault.what.partition(": ")[2]) == (
        "hung",
        "a request there cannot be ended any more, the log says why",
    )


def test_a_server_that_does_not_answer_hangs(child, tmp_path):
    watched, fault = condition(child, tmp_path, SimpleNamespace(count=3)), None
    deadline = time.monotonic() + 5
    while fault is None and time.monotonic() < deadline:
        beat(tmp_path, child.pid)
        time.sleep(0.05)
        fault = watched.fault()
    assert fault is not None
    assert fault.what.startswith("tritonserver hangs")


def test_a_model_without_its_beat_has_ended_in_order(child, tmp_path):
    beat(tmp_path, child.pid)
    watched = condition(child, tmp_path, SimpleNamespace(count=0))
    assert watched.ended_in_order == set()
    (tmp_path / f"decoder.{child.pid}").unlink()
    assert watched.ended_in_order == {"decoder"}


def test_a_model_whose_beat_was_lost_has_not_ended_in_order(child, tmp_path):
    beats = tmp_path / "beats"
    beats.mkdir()
    beat(beats, child.pid)
    watched = condition(child, beats, SimpleNamespace(count=0))
    shutil.rmtree(beats)
    assert watched.ended_in_order == set()


@pytest.mark.parametrize("with_directory", [True, False])
def test_a_process_whose_beat_was_lost_hangs(child, tmp_path, with_directory):
    beats, pulse = tmp_path / "beats", SimpleNamespace(count=0)
    beats.mkdir()
    watched = condition(child, beats, pulse)
    beat(beats, child.pid)  # its first one came after the server was ready
    assert watched.fault() is None
    shutil.rmtree(beats)
    if with_directory:
        beats.mkdir()
    fault = wait_for_fault(watched, pulse)
    assert fault is not None
    assert fault.what.startswith(f"decoder (process {child.pid}) hangs: no sign of life for ")


def test_on_a_full_disk_nobody_can_beat_and_nobody_hangs(child, tmp_path, monkeypatch):
    pulse = SimpleNamespace(count=0)
    beat(tmp_path, child.pid)
    watched = condition(child, tmp_path, pulse)

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(tempfile, "TemporaryFile", full)
        for _ in range(20):
            pulse.count += 1
            time.sleep(0.05)
            assert watched.fault() is None
    assert wait_for_fault(watched, pulse) is not None, "there is room again, and still no beat"


def test_a_process_that_is_reaped_while_it_is_looked_at_has_ended(child, tmp_path, monkeypatch):
    watched = condition(child, tmp_path, SimpleNamespace(count=0))

    def gone(process: psutil.Process) -> str:
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "status", gone)
    fault = watched.fault()
    assert fault is not None
    assert (fault.reason, fault.what) == ("dead", f"process {child.pid} ended")


def test_time_in_which_the_watcher_did_not_run_counts_for_a_second_at_most():
    now = [0.0]
    silence: Silence[str] = Silence(lambda: now[0])
    silence.of({"a": 1})
    now[0] += 0.5
    assert silence.of({"a": 1}) == {"a": 0.5}
    now[0] += 3600  # the machine was suspended
    assert silence.of({"a": 1, "b": 1}) == {"a": 1.5, "b": 0.0}
    now[0] += 0.25
    assert silence.of({"a": 2, "b": 1}) == {"a": 0.0, "b": 0.25}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is a look."""
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("looks")
def test_growth_beyond_the_bound_is_a_leak_when_it_lasts(child):
    take(child, 1)
    leak = Leak({"decoder": psutil.Process(child.pid)}, "nvlm_trt_nobody", 32 << 20)
    take(child, 16)
    assert [leak.found() for _ in range(4)] == [None] * 4
    take(child, 32)
    first, second, third = (leak.found() for _ in range(3))
    assert first is second is None
    assert third is not None
    assert third.startswith("decoder leaks: 4")
    assert third.endswith("(bound 32)")


@pytest.mark.usefixtures("looks")
def test_the_process_that_grew_most_goes_at_once_when_memory_is_scarce(child, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: Memory(1 << 30, 512 << 20))
    leak = Leak({"decoder": psutil.Process(child.pid)}, "nvlm_trt_nobody", 1 << 30)
    take(child, 64)
    assert leak.found() is None
    assert not leak.is_urgent
    monkeypatch.setattr(memory, "memory", lambda: Memory(1 << 30, 32 << 20))
    found = leak.found()
    assert found is not None
    assert "memory is scarce" in found
    assert leak.is_urgent


@pytest.mark.usefixtures("looks")
def test_a_machine_that_is_full_of_something_else_cuts_no_drain_short(child, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: Memory(1 << 30, 32 << 20))
    leak = Leak({"decoder": psutil.Process(child.pid)}, "nvlm_trt_nobody", 1 << 30)
    assert leak.found() is None
    assert not leak.is_urgent


def test_regions_are_as_large_as_what_was_written(tmp_path):
    with (tmp_path / "mine_1").open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.truncate(64 << 20)
    (tmp_path / "other").write_bytes(b"x" * (1 << 20))
    assert 1 << 20 <= region_bytes("mine_", tmp_path) < 2 << 20
