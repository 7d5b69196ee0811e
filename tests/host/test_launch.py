"""What tritonserver's launcher sets holds for the command that it becomes."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys

import pytest

from nvlm_trt.host import launch

NICENESS = 3


def said_by(program: str) -> str:
    """What a program says that the launcher became, in a session of its own, as tritonserver is."""
    command = [sys.executable, "-I", launch.__file__, str(NICENESS), str(os.getpid()), sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    return ran.stdout.strip()


def test_the_command_goes_behind_others_where_cores_are_short():
    assert int(said_by("import os; print(os.nice(0))")) == min(19, os.nice(0) + NICENESS)


@pytest.mark.skipif(
    not (launch.AUTOGROUP.exists() and launch.AUTOGROUP.read_text()), reason="no cores are shared between sessions here"
)
def test_its_session_goes_behind_other_sessions():
    words = said_by("print(open('/proc/self/autogroup').read())")
    assert re.search(r" nice (\d+)$", words)[1] == str(NICENESS)


def test_the_command_has_a_larger_stack():
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    expected = launch.STACK_BYTES if hard == resource.RLIM_INFINITY else min(launch.STACK_BYTES, hard)
    assert int(said_by("import resource; print(resource.getrlimit(resource.RLIMIT_STACK)[0])")) == expected
