"""The GPUs of this machine, as nvidia-smi tells them: nothing is loaded, no CUDA context is made."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from dataclasses import dataclass

TIMEOUT_SECONDS = 60.0
"""Without persistence mode nvidia-smi wakes every GPU up first: some seconds each."""

CSV = "--format=csv,noheader,nounits"
FIELDS = ("name", "memory.total", "compute_cap", "driver_version", "uuid")

CUDA_VERSION = re.compile(r"CUDA (?:\w+ )?Version\s*:\s*(\d+\.\d+)")
"""In the heading of nvidia-smi's table; some drivers put a word between."""

FIRST_DRIVERS = {13: 580, 12: 525}
"""First driver branch that runs a CUDA major version (NVIDIA, "CUDA Compatibility", minor version compatibility)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver calls it ("NVIDIA H100 80GB HBM3").
        memory_bytes: All of its memory; None where it shares the host's.
        compute_capability: 90 for 9.0.
        uuid: Its identity.
    """

    name: str
    memory_bytes: int | None
    compute_capability: int
    uuid: str

    @property
    def capability(self) -> str:
        """The compute capability as NVIDIA writes it."""
        return capability_in_words(self.compute_capability)


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What nvidia-smi told.

    Attributes:
        gpus: Every GPU that CUDA_VISIBLE_DEVICES doesn't hide, in nvidia-smi's order.
        driver: Version of the driver; None without a GPU.
        cuda: Newest CUDA version that the driver runs; "13.0", or "13" where only the driver's version tells.
        fault: Why there are no GPUs, in one sentence; None where there are some.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    fault: str | None = None


class _NoAnswerError(Exception):
    """nvidia-smi said nothing that helps; the message says why."""


def find_gpus() -> GpuReport:
    """Ask nvidia-smi; it is found by PATH."""
    try:
        gpus, driver = _listed()
    except _NoAnswerError as why:
        return GpuReport(fault=str(why))
    gpus = _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not gpus:
        return GpuReport(driver=driver, fault="CUDA_VISIBLE_DEVICES hides every GPU")
    return GpuReport(gpus, driver, _cuda_told() or _cuda_of(driver))


def used_bytes() -> int | None:
    """Memory in use on all GPUs together, visible or not; None where nvidia-smi does not tell."""
    try:
        return sum(int(line) << 20 for line in _ask("--query-gpu=memory.used", CSV).split("\n") if line.strip())
    except (_NoAnswerError, ValueError):
        return None


def capability_in_words(compute_capability: int) -> str:
    """90 -> "9.0"."""
    return f"{compute_capability // 10}.{compute_capability % 10}"


def _ask(*words: str) -> str:
    """What nvidia-smi prints.

    Raises:
        _NoAnswerError: it is not there, hangs, or fails.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise _NoAnswerError("nvidia-smi is not on PATH: no NVIDIA driver, or a container without --gpus") from None
    except OSError as error:
        raise _NoAnswerError(f"nvidia-smi cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"nvidia-smi did not answer within {TIMEOUT_SECONDS:g} s") from None
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise _NoAnswerError(f"nvidia-smi failed: {told[0]}")
    return done.stdout


def _listed() -> tuple[tuple[Gpu, ...], str]:
    """Every GPU, and the version of their driver.

    Raises:
        _NoAnswerError: there is none, or nvidia-smi does not tell.
    """
    answer = _ask(f"--query-gpu={','.join(FIELDS)}", CSV)
    rows = [row for row in csv.reader(answer.splitlines(), skipinitialspace=True) if row]
    if not rows:
        raise _NoAnswerError("nvidia-smi lists no GPU")
    try:
        return tuple(_gpu(row) for row in rows), rows[0][FIELDS.index("driver_version")]
    except ValueError:
        raise _NoAnswerError(f"nvidia-smi's answer is not understood: {', '.join(rows[0])}") from None


def _gpu(row: list[str]) -> Gpu:
    """One line of nvidia-smi's answer.

    Raises:
        ValueError: it is not what was asked for.
    """
    name, memory, capability, _, uuid = row
    major, minor = capability.split(".")
    memory_bytes = int(memory) << 20 if memory.isdecimal() else None
    return Gpu(name, memory_bytes, 10 * int(major) + int(minor), uuid)


def _visible(gpus: tuple[Gpu, ...], names: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA shows: the value has positions or the beginnings of UUIDs, and ends at the first unknown one.

    Positions are taken as nvidia-smi's, which are CUDA's own only where the GPUs are alike or CUDA_DEVICE_ORDER is
    PCI_BUS_ID. Names of MIG instances show all: nvidia-smi's list has no word of them.
    """
    if names is None or "MIG" in names:
        return gpus
    visible: list[Gpu] = []
    for name in names.split(","):
        if name.strip().isdecimal():
            found = gpus[int(name) : int(name) + 1]
        else:
            found = tuple(gpu for gpu in gpus if name.strip() and gpu.uuid.startswith(name.strip()))
        if len(found) != 1:
            break
        visible += found
    return tuple(visible)


def _cuda_told() -> str | None:
    try:
        told = CUDA_VERSION.search(_ask())
    except _NoAnswerError:
        return None
    return told[1] if told else None


def _cuda_of(driver: str) -> str | None:
    branch = driver.partition(".")[0]
    if not branch.isdecimal():
        return None
    return next((str(cuda) for cuda, first in FIRST_DRIVERS.items() if int(branch) >= first), None)
