"""Times of kernels are kept from build to build, and never cost more than time."""

from __future__ import annotations

import json
import threading

import pytest
from filelock import FileLock


def test_times_are_kept_and_used_by_the_next_build(machine, build):
    build()
    assert build.times() == {"gemm": 1.0}
    machine.tactic = "softmax"
    build()
    assert machine.built["known_times"] == {"gemm": 1.0}
    assert build.times() == {"gemm": 1.0, "softmax": 1.0}
    assert not any("timing cache" in line for line in build.told)


def _stored(gpu="H100", **times):
    return json.dumps({"header": ["10.14.1.48", gpu], "times": times}).encode()


@pytest.mark.parametrize("content", [_stored("A100", other=2.0), b"not a cache"])
def test_a_cache_of_another_gpu_or_a_damaged_one_is_set_aside(machine, build, content):
    build.cache.parent.mkdir()
    build.cache.write_bytes(content)
    build()
    assert machine.built["known_times"] == {}
    assert build.times() == {"gemm": 1.0}
    assert build.cache.with_name("vision.cache.other").read_bytes() == content
    assert any("starts with an empty one" in line for line in build.told)


def test_a_cache_that_raises_costs_time_only(machine, build):
    build.cache.parent.mkdir()
    build.cache.write_bytes(_stored(other=2.0))
    machine.cache_raises = True
    build()
    assert "model.plan" in build.names()
    assert any("starts with an empty one" in line for line in build.told)


def test_a_cache_that_cannot_be_read_or_written_costs_time_only(machine, build):
    build.cache.mkdir(parents=True)
    build()
    assert "model.plan" in build.names()
    assert any("cannot be read" in line for line in build.told)
    assert any("cannot be kept" in line for line in build.told)


def test_times_that_another_build_saved_meanwhile_are_kept(machine, build):
    def another_build_saves():
        build.cache.parent.mkdir()
        build.cache.write_bytes(_stored(other=2.0))

    machine.during_build = another_build_saves
    build()
    assert build.times() == {"gemm": 1.0, "other": 2.0}


def test_the_cache_is_not_written_while_another_build_holds_its_lock(machine, build):
    build.cache.parent.mkdir()
    lock = build.cache.with_name("vision.cache.lock")
    at_work = threading.Event()
    machine.during_build = at_work.set
    held = FileLock(lock)
    with held:
        thread = threading.Thread(target=build)
        thread.start()
        assert at_work.wait(20)
        thread.join(0.3)
        assert thread.is_alive()
        build.cache.write_bytes(_stored(other=2.0))
    thread.join(20)
    assert build.times() == {"gemm": 1.0, "other": 2.0}
    assert lock.exists()
