"""Two that compute take turns, and nobody waits for one that is gone."""

from __future__ import annotations

import fcntl
import multiprocessing
import threading
import time
from pathlib import Path
from typing import IO

from nvlm_trt.turns import NEXT, Turns


def test_who_wants_to_compute_waits_for_the_other(tmp_path):
    first, second = Turns(tmp_path), Turns(tmp_path)
    first.take()
    got = threading.Event()
    waiter = threading.Thread(target=lambda: (second.take(), got.set()))
    waiter.start()
    assert not got.wait(0.05)
    first.give()
    assert got.wait(30)
    waiter.join()


def test_passing_on_lets_who_waits_go_first(tmp_path):
    slices, steps = Turns(tmp_path), Turns(tmp_path)
    slices.take()
    order: list[str] = []

    def step() -> None:
        with steps.taken():
            time.sleep(0.02)
            order.append("step")

    waiter = threading.Thread(target=step)
    waiter.start()
    with (tmp_path / NEXT).open() as turnstile:
        while _is_free(turnstile):  # until the step has lined up
            time.sleep(0.002)
    slices.pass_on()
    order.append("slice")
    assert order == ["step", "slice"]
    waiter.join()


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _die_with_the_turn(directory: Path) -> None:
    Turns(directory).take()


def test_the_turn_of_a_process_that_died_is_free(tmp_path):
    dying = multiprocessing.get_context("spawn").Process(target=_die_with_the_turn, args=(tmp_path,))
    dying.start()
    dying.join()
    assert Turns(tmp_path).take() < 30


def test_the_seconds_that_were_waited_are_told(tmp_path):
    first, second = Turns(tmp_path), Turns(tmp_path)
    first.take()
    threading.Timer(0.5, first.give).start()
    with second.taken() as waited:
        assert waited > 0.03


def test_who_has_nobody_to_take_turns_with_never_waits():
    alone = Turns()
    with alone.taken() as waited:
        alone.pass_on()
    assert waited == 0
    alone.close()
    alone.close()
