"""Watching a server: what is announced, what is replaced, and when it is given up."""

from __future__ import annotations

import errno
import importlib.metadata
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.errors import EngineError, ServerError
from nvlm_trt.host import environment, runtime, shm, supervisor
from nvlm_trt.host.environment import Triton
from nvlm_trt.host.selftest import echo_works, is_ready
from nvlm_trt.host.supervisor import CrashedError, Fault, Patience, ServerEvent, Supervisor
from nvlm_trt.serving import heartbeat

QUICK = Patience(max_failures=2, first_pause=0.01)


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class FakeProcess:
    """A server that is "well", "never" ready, "crashes" while it starts, or becomes "dead", "hung" or "leaking"."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.ended: str | None = None

    def wait_ready(self, stop: threading.Event) -> None:
        if self.behaviour == "never":
            raise ServerError("it did not start")
        if self.behaviour == "crashes":
            raise CrashedError("it crashed")

    def fault(self) -> Fault | None:
        return None if self.behaviour == "well" else Fault(self.behaviour, f"a process is {self.behaviour}")

    def stop(self, hurry: threading.Event) -> None:
        self.ended = "hurried" if hurry.is_set() else "stopped"

    def kill(self) -> None:
        self.ended = "killed"


class Run:
    """A supervisor over servers of these behaviours, in a thread."""

    def __init__(self, *behaviours: str) -> None:
        self.waiting = [FakeProcess(behaviour) for behaviour in behaviours]
        self.started: list[FakeProcess] = []
        self.events: list[str] = []
        self.error: ServerError | None = None
        self.supervisor = Supervisor(self.launch, lambda event: self.events.append(event.kind), QUICK)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def launch(self) -> FakeProcess:
        self.started.append(self.waiting.pop(0))
        return self.started[-1]

    def run(self) -> None:
        try:
            self.supervisor.run()
        except ServerError as error:
            self.error = error

    def end(self) -> None:
        self.supervisor.stop()
        self.thread.join(5)
        assert not self.thread.is_alive()


def test_a_server_is_announced_and_stopped():
    run = Run("well")
    assert run.supervisor.ready.wait(5)
    run.end()
    assert run.events == ["ready", "draining", "stopped"]
    assert run.started[0].ended == "stopped"
    assert not run.supervisor.ready.is_set()


def test_a_server_that_fails_is_killed_and_replaced():
    run = Run("dead", "well")
    while len(run.started) < 2 or not run.supervisor.ready.is_set():
        time.sleep(0.01)
    run.end()
    assert run.events == ["ready", "lost", "ready", "draining", "stopped"]
    assert run.started[0].ended == "killed"
    assert run.supervisor.lost == {"dead": 1, "hung": 0, "leaking": 0, "start": 0}


def test_a_server_that_leaks_finishes_its_requests_before_it_is_replaced():
    run = Run("leaking", "well")
    while len(run.started) < 2 or not run.supervisor.ready.is_set():
        time.sleep(0.01)
    run.end()
    assert run.events == ["ready", "draining", "lost", "ready", "draining", "stopped"]
    assert run.started[0].ended == "stopped"
    assert run.supervisor.lost["leaking"] == 1


def test_whoever_asks_twice_does_not_wait():
    run = Run("well")
    assert run.supervisor.ready.wait(5)
    run.supervisor.hurry.set()
    run.end()
    assert run.started[0].ended == "hurried"


def test_a_server_is_unready_as_soon_as_it_is_asked_to_stop():
    run = Run("well")
    assert run.supervisor.ready.wait(5)
    run.supervisor.stop()
    assert not run.supervisor.ready.is_set()
    run.end()
    assert run.supervisor.state == "stopped"


def test_a_first_server_that_does_not_start_is_not_tried_again():
    run = Run("never", "well")
    run.thread.join(5)
    assert str(run.error) == "it did not start"
    assert len(run.started) == 1


def test_a_first_server_that_crashes_while_starting_is_tried_again():
    run = Run("crashes", "well")
    assert run.supervisor.ready.wait(5)
    run.end()
    assert run.events == ["lost", "ready", "draining", "stopped"]


def test_a_replacement_that_does_not_start_is_tried_again():
    run = Run("dead", "never", "well")
    while len(run.started) < 3 or not run.supervisor.ready.is_set():
        time.sleep(0.01)
    run.end()
    assert run.events == ["ready", "lost", "lost", "ready", "draining", "stopped"]
    assert run.supervisor.lost == {"dead": 1, "hung": 0, "leaking": 0, "start": 1}


def test_a_server_that_cannot_be_kept_alive_is_given_up():
    run = Run("dead", "never", "never", "well")
    run.thread.join(5)
    assert run.error is not None
    assert "could not be kept alive" in str(run.error)
    assert run.events == ["ready", "lost", "lost", "lost", "failed"]
    assert run.supervisor.state == "failed"


def test_failures_of_servers_that_were_well_for_long_are_not_counted_together(monkeypatch):
    monkeypatch.setattr(supervisor, "GOOD_HEALTH_SECONDS", 0.0)
    run = Run("dead", "hung", "dead", "hung", "well")
    while len(run.started) < 5 or not run.supervisor.ready.is_set():
        time.sleep(0.01)
    run.end()
    assert run.supervisor.lost == {"dead": 2, "hung": 2, "leaking": 0, "start": 0}


def test_the_first_replacement_comes_at_once_and_further_ones_later_and_later():
    assert [Patience().pause(failures) for failures in (1, 2, 3, 4, 5)] == [0, 1, 2, 4, 8]


def test_a_launch_that_the_system_refuses_is_a_failure():
    def launch() -> FakeProcess:
        raise OSError("no memory")

    with pytest.raises(ServerError, match="no memory"):
        Supervisor(launch, lambda event: None, QUICK).run()


def test_a_supervisor_that_fails_says_so_and_ends_the_server(caplog):
    process, events = FakeProcess("well"), []

    def mistaken() -> Fault | None:
        raise ZeroDivisionError("a mistake")

    process.fault = mistaken  # type: ignore[method-assign]
    watching = Supervisor(lambda: process, lambda event: events.append(event.kind), QUICK)
    with pytest.raises(ServerError, match="a mistake"):
        watching.run()
    assert process.ended == "killed"
    assert (events, watching.state) == (["ready", "failed"], "failed")
    assert "Traceback" in caplog.text


def test_a_listener_that_fails_does_not_end_the_server(caplog):
    def deaf(event: ServerEvent) -> None:
        raise ValueError(event.kind)

    watching = Supervisor(lambda: FakeProcess("well"), deaf, QUICK)
    thread = threading.Thread(target=watching.run)
    thread.start()
    assert watching.ready.wait(5)
    watching.stop()
    thread.join(10)
    assert watching.state == "stopped"
    assert "ValueError: ready" in caplog.text


def test_a_process_beats_until_it_ends_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.HEARTBEAT_DIR, str(tmp_path))
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    beating = heartbeat.Heartbeat("decoder", still=lambda: 4.5, active=lambda: 3)
    deadline = time.monotonic() + 5
    while not heartbeat.read_beats(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    (beat,) = heartbeat.read_beats(tmp_path)
    assert (beat.model, beat.active, beat.still) == ("decoder", 3, 4.5)
    assert abs(beat.at - time.monotonic()) < 2
    beating.stop()
    assert not list(tmp_path.iterdir())


class Time:
    """A clock, what the process has computed, and who asks at each beat."""

    def __init__(self) -> None:
        self.now = self.computed = 1000.0
        self.ask: Callable[[], object] = lambda: None

    def passes(self, seconds: float, *, computing: float = 0.0) -> None:
        for _ in range(round(seconds / heartbeat.INTERVAL_SECONDS)):
            self.now += heartbeat.INTERVAL_SECONDS
            self.computed += heartbeat.INTERVAL_SECONDS * computing
            self.ask()


def progress(time_: Time, position: Callable[[], object]) -> heartbeat.Progress:
    still = heartbeat.Progress(position, longest=120, clock=lambda: time_.now, computed=lambda: time_.computed)
    time_.ask = still
    return still


def test_work_that_waits_stands_still_and_work_that_computes_does_not():
    time_, positions = Time(), [1]
    still = progress(time_, lambda: positions[-1])
    assert still() == 0
    time_.passes(30, computing=0.9)  # a long step
    assert still() == 0
    positions.append(2)
    assert still() == 0
    time_.passes(5, computing=0.005)  # a deadlock: heartbeats compute a little, too
    assert still() == 5
    time_.passes(4, computing=0.005)
    assert still() == 9
    positions.append(3)
    assert still() == 0


def test_a_step_that_computes_for_ever_stands_still_in_the_end():
    time_ = Time()
    still = progress(time_, lambda: 1)
    still()
    time_.passes(119, computing=1)
    assert still() == 0
    time_.passes(2, computing=1)
    assert still() == 121


def test_time_in_which_the_whole_process_was_frozen_is_not_held_against_it():
    time_ = Time()
    still = progress(time_, lambda: 1)
    still()
    time_.passes(2)
    time_.now += 60  # a paused container, a machine that was suspended
    assert still() == 3
    time_.passes(4)
    assert still() == 7


def test_a_process_without_work_does_not_stand_still():
    time_, work = Time(), [None]
    still = progress(time_, lambda: work[-1])
    time_.passes(1000)
    assert still() == 0
    work.append(7)
    assert still() == 0
    time_.passes(3)
    assert still() == 3


def test_without_a_supervisor_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(heartbeat.HEARTBEAT_DIR, raising=False)
    monkeypatch.chdir(tmp_path)
    heartbeat.Heartbeat("decoder").stop()
    assert not list(tmp_path.iterdir())


def test_a_heartbeat_ends_with_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.HEARTBEAT_DIR, str(tmp_path / "gone"))
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    beating = heartbeat.Heartbeat("decoder")
    deadline = time.monotonic() + 5
    while not beating._stopped.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert beating._stopped.is_set()


def test_a_process_beats_again_once_the_disk_has_room(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.HEARTBEAT_DIR, str(tmp_path))
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    refused = threading.Event()

    def full(*_: object) -> None:
        refused.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    beating = heartbeat.Heartbeat("decoder")
    wait(lambda: heartbeat.read_beats(tmp_path))
    with monkeypatch.context() as disk:
        disk.setattr(heartbeat.Path, "write_text", full)
        assert refused.wait(5)
        (last,) = heartbeat.read_beats(tmp_path)  # it has not ended
    wait(lambda: heartbeat.read_beats(tmp_path)[0].at > last.at)
    beating.stop()
    assert heartbeat.read_beats(tmp_path) == []


def test_a_directory_that_is_gone_has_no_beats(tmp_path):
    assert heartbeat.read_beats(tmp_path / "gone") == []


def test_regions_of_the_dead_are_removed_and_others_are_left(tmp_path):
    mine, dead = shm.new_prefix(), "nvlm_trt_999999999_1_0_"
    reused = f"nvlm_trt_{mine.split('_')[2]}_1_0_"
    for name in (f"{mine}a", f"{dead}a", f"{reused}a", "somebody_else"):
        (tmp_path / name).touch()
    assert shm.remove_stale_regions(tmp_path) == 2
    assert {file.name for file in tmp_path.iterdir()} == {f"{mine}a", "somebody_else"}
    assert shm.remove_regions(mine, tmp_path) == 1
    assert shm.remove_stale_regions(tmp_path / "absent") == 0


def test_a_region_of_the_dead_that_is_another_users_is_left_with_a_warning(tmp_path, monkeypatch, caplog):
    theirs, mine = tmp_path / "nvlm_trt_999999999_1_0_a", tmp_path / "nvlm_trt_999999999_1_0_b"
    theirs.touch()
    mine.touch()
    unlink = Path.unlink

    def refuse(file: Path, *, missing_ok: bool = False) -> None:
        if file == theirs:  # /dev/shm is sticky
            raise PermissionError(errno.EPERM, "Operation not permitted", str(file))
        unlink(file, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert shm.remove_stale_regions(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [theirs]
    assert "is left" in caplog.text


def test_runtime_directories_of_the_dead_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    mine = runtime.new_runtime_dir()
    dead = tmp_path / f"{runtime.PREFIX}999999999-x"
    dead.mkdir()
    assert runtime.remove_stale_runtime_dirs() == 1
    assert list(tmp_path.iterdir()) == [mine]


def test_the_server_gets_this_environment_first(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    made = Triton.find().environment({"X": "1"})
    assert made["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert "nvidia_pytriton.libs" in made["LD_LIBRARY_PATH"]
    assert "PYTHONHOME" not in made
    assert made["X"] == "1"


def test_numpy_2_is_refused_before_the_server_starts(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.6")
    with pytest.raises(EngineError, match="numpy 2 corrupts"):
        Triton.find()


def test_a_missing_server_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install"):
        Triton.find()


def test_nobody_there_is_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert not is_ready(f"127.0.0.1:{port}")
    assert not echo_works(f"127.0.0.1:{port}")


def test_a_thread_that_waits_for_ever_stands_still_though_other_threads_compute():
    """A send that does not end, beside streams that are decoded."""
    work, entered, ends = heartbeat.Work(), threading.Event(), threading.Event()

    def send() -> None:
        with work.one():
            entered.set()
            ends.wait()

    sender = threading.Thread(target=send)
    sender.start()
    entered.wait()
    still = heartbeat.Progress(lambda: work.position, computed=work.computed)
    still()
    began = time.monotonic()
    while time.monotonic() - began < 0.3:  # it is this thread that computes
        pass
    assert still() >= 0.3
    ends.set()
    sender.join()
    assert still() == 0
