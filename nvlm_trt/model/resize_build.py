"""Compiles the resizing kernel, `_resize.c`, with the C compiler of the machine.

Installing the package does it, by `hatch_build.py`, where the package's dependencies are not at hand: so only the
standard library is imported here. ``python -m nvlm_trt.model.resize_build`` does it again after a change of the source.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("_resize.c")
LIBRARY = Path(__file__).with_name("_resize.so")

MACHINES = ("x86_64", "AMD64")
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
"""Without contraction a product and a sum are rounded one by one, as in the Pillow that the kernel has to equal."""
TIMEOUT_SECONDS = 120


class KernelBuildError(Exception):
    """There is no kernel, for the reason given; images are then resized by Pillow."""


def source_digest() -> str:
    """What tells this source from others; the library carries that of its own."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def compile_kernel(library: Path = LIBRARY) -> None:
    """Compile the kernel.

    Args:
        library: The shared library to write; replaced as a whole, since a running process may have it open.

    Raises:
        KernelBuildError: the machine's processor has other instructions, there is no compiler, or it failed.
    """
    if platform.machine() not in MACHINES:
        raise KernelBuildError(f"it is for {MACHINES[0]} with AVX2, and this is {platform.machine()}")
    partial = library.with_name(f".{library.name}.{os.getpid()}")
    define = f'-DNVLM_SOURCE_DIGEST="{source_digest()}"'
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, define, str(SOURCE), "-o", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        if done.returncode:
            raise KernelBuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        partial.replace(library)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelBuildError(f"no C compiler could be run: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        compile_kernel()
    except KernelBuildError as reason:
        sys.exit(f"The resizing kernel was not built: {reason}")
