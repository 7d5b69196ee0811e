"""Resident memory, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from nvlm_trt.bench.memory import forget_peak, peak_bytes, resident_bytes

BLOCK = 64 << 20
CHILD = "import sys; block = b'x' * (64 << 20); print('ready', flush=True); sys.stdin.read()"


def test_a_block_that_was_let_go_stays_in_the_peak_until_it_is_forgotten() -> None:
    forget_peak()
    before = peak_bytes()
    block = np.ones(BLOCK, np.uint8)
    assert resident_bytes() >= before - (8 << 20) + BLOCK
    del block
    assert peak_bytes() >= before + BLOCK - (8 << 20)
    forget_peak()
    assert peak_bytes() < before + BLOCK // 2


def test_a_child_process_is_counted_as_long_as_it_lives() -> None:
    forget_peak()
    alone = peak_bytes()
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert peak_bytes() >= alone + BLOCK
        child.communicate()
    assert peak_bytes() < alone + BLOCK
