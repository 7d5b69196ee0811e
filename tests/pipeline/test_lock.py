"""One build of an engine directory at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nvlm_trt.errors import BusyError
from nvlm_trt.pipeline.lock import locked

HOLDER = """
import sys
from pathlib import Path
from nvlm_trt.pipeline.lock import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(engine: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(engine)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_build_is_refused_and_may_wait_instead(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        with (
            pytest.raises(BusyError, match=r"another build holds this engine directory.*; go away") as caught,
            locked(tmp_path, wait=False, fix="go away"),
        ):
            pass
        assert caught.value.exit_code == 2
        got = threading.Event()

        def wait_for_it() -> None:
            with locked(tmp_path, wait=True):
                got.set()

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        assert not got.wait(0.2)
        holder.communicate()
        assert got.wait(10)
        waiter.join()


def test_a_killed_build_holds_no_lock(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        holder.kill()
        holder.wait()
        with locked(tmp_path, wait=False):
            pass
