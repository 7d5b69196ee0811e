"""GPUs as nvidia-smi tells them; a script of that name stands in for it on PATH."""

from __future__ import annotations

import os
import stat

import pytest

from nvlm_trt.environment import gpus as module
from nvlm_trt.environment.gpus import Gpu, find_gpus

H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.65.06, GPU-aaaa"
L40S = "NVIDIA L40S, 46068, 8.9, 580.65.06, GPU-bbbb"
HEADING = "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a script in nvidia-smi's place: lines for the query, text for the table, or a shell command for both."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*lines, heading=HEADING, command=None):
        listing = "\n".join(lines)
        query = f"cat <<'END'\n{listing}\nEND\n" if lines else ":"
        table = f"cat <<'END'\n{heading}\nEND\n"
        body = command or f'echo "$@" >>{tmp_path}/asked\nif [ $# -gt 0 ]; then {query}\nelse {table}\nfi'
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return tmp_path

    return put


def test_every_gpu_is_told_with_driver_and_cuda(nvidia_smi):
    folder = nvidia_smi(H100, L40S)
    report = find_gpus()
    assert report.gpus == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 90, "GPU-aaaa"),
        Gpu("NVIDIA L40S", 46068 << 20, 89, "GPU-bbbb"),
    )
    assert [gpu.capability for gpu in report.gpus] == ["9.0", "8.9"]
    assert (report.driver, report.cuda, report.fault) == ("580.65.06", "13.0", None)
    query = "--query-gpu=name,memory.total,compute_cap,driver_version,uuid --format=csv,noheader,nounits"
    assert (folder / "asked").read_text() == f"{query}\n\n"


def test_two_digits_of_a_capability_are_kept_apart_from_the_third(nvidia_smi):
    nvidia_smi("NVIDIA B200, 183359, 10.0, 580.65.06, GPU-c", "NVIDIA RTX PRO 6000, 97887, 12.0, 580.65.06, GPU-d")
    assert [(gpu.compute_capability, gpu.capability) for gpu in find_gpus().gpus] == [(100, "10.0"), (120, "12.0")]


def test_memory_that_belongs_to_the_host_is_not_a_number(nvidia_smi):
    nvidia_smi("NVIDIA GB10, [N/A], 12.1, 580.95.05, GPU-e")
    assert find_gpus().gpus[0].memory_bytes is None


@pytest.mark.parametrize(
    ("heading", "driver", "cuda"),
    [
        ("| NVIDIA-SMI 610.57.04   KMD Version: 610.57.04   CUDA UMD Version: 13.3 |", "610.57.04", "13.3"),
        ("CUDA Version: 12.4", "580.65.06", "12.4"),  # forward compatibility is the driver's user part alone
        ("no heading", "580.65.06", "13"),
        ("no heading", "575.57.08", "12"),
        ("no heading", "470.82.01", None),
    ],
)
def test_cuda_is_the_headings_or_else_the_drivers(nvidia_smi, heading, driver, cuda):
    nvidia_smi(H100.replace("580.65.06", driver), heading=heading)
    assert find_gpus().cuda == cuda


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ("1", ["NVIDIA L40S"]),
        ("1,0", ["NVIDIA L40S", "NVIDIA H100 80GB HBM3"]),
        ("GPU-bb", ["NVIDIA L40S"]),
        ("0,7,1", ["NVIDIA H100 80GB HBM3"]),
        ("MIG-12345678", ["NVIDIA H100 80GB HBM3", "NVIDIA L40S"]),
    ],
)
def test_hidden_gpus_are_left_out_as_cuda_leaves_them_out(nvidia_smi, monkeypatch, shown, found):
    nvidia_smi(H100, L40S)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert [gpu.name for gpu in find_gpus().gpus] == found


@pytest.mark.parametrize("shown", ["", "-1", "GPU-"])
def test_a_variable_that_hides_all_is_named(nvidia_smi, monkeypatch, shown):
    nvidia_smi(H100, L40S)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    report = find_gpus()
    assert (report.gpus, report.fault) == ((), "CUDA_VISIBLE_DEVICES hides every GPU")


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9",
            "could not communicate",
        ),
        ("echo 'no such field' >&2; exit 2", "nvidia-smi failed: no such field"),
        ("exit 3", "nvidia-smi failed: exit code 3"),
        (":", "nvidia-smi lists no GPU"),
        ("echo 'NVIDIA H100, 9.0'", "is not understood: NVIDIA H100, 9.0"),
        ("echo 'NVIDIA H100, 1, N/A, 580, GPU-1'", "is not understood"),
        ("sleep 5", "did not answer within 0.2 s"),
    ],
)
def test_an_nvidia_smi_that_does_not_help_is_told(nvidia_smi, monkeypatch, command, fault):
    nvidia_smi(command=f"[ $# -gt 0 ] || exit 1\n{command}")
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2 if "sleep" in command else 20)
    report = find_gpus()
    assert report.gpus == ()
    assert fault in report.fault


def test_a_machine_without_nvidia_smi_is_told_why_that_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on PATH: no NVIDIA driver, or a container without --gpus" in find_gpus().fault


def test_an_nvidia_smi_that_cannot_be_run_is_told(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus().fault == "nvidia-smi cannot be run (Permission denied)"
