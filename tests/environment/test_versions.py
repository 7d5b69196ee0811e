"""Versions that work together pass; every other machine is told what it has, what works, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvlm_trt.environment import seen as seen_module
from nvlm_trt.environment.gpus import Gpu, GpuReport
from nvlm_trt.environment.seen import Seen, look
from nvlm_trt.environment.versions import (
    OWN_TENSORRT,
    PINNED_TENSORRT,
    PINNED_TENSORRT_LLM,
    check_versions,
    numbers,
)

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 90, "GPU-1")
GOOD = Seen("10.14.1.48", "1.2.1", "26.04", GpuReport((H100,) * 4, "580.65.06", "13.0"))


def with_gpus(**changes):
    return replace(GOOD, gpus=replace(GOOD.gpus, **changes))


def faults(seen):
    return {fault.subject: fault for fault in check_versions(seen)}


def test_the_pinned_set_has_no_fault():
    assert check_versions(GOOD) == []
    assert PINNED_TENSORRT.startswith(f"{OWN_TENSORRT}.")
    assert (GOOD.tensorrt_llm, GOOD.tensorrt) == (PINNED_TENSORRT_LLM, PINNED_TENSORRT)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.14.1.48", (10, 14, 1, 48)),
        ("10.14.1.48.post1", (10, 14, 1, 48)),
        ("1.3.0rc3", (1, 3, 0)),
        ("1.2.0+cu13", (1, 2, 0)),
        ("", ()),
    ],
)
def test_a_version_is_its_leading_numbers(version, expected):
    assert numbers(version) == expected


@pytest.mark.parametrize("version", ["10.11.0.33", "10.13.3.9", "10.16.1.11"])
def test_tensorrt_of_the_range_is_taken(version):
    assert "tensorrt" not in faults(replace(GOOD, tensorrt=version))


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "is not installed; seen: none"),
        ("10.10.0.31", "is not supported; seen: 10.10.0.31"),
        ("10.17.0.1", "is not supported; seen: 10.17.0.1"),
        ("8.6.1", "is not supported"),
        ("11.1.0.106", "TensorRT 11 builds vision engines alone"),
    ],
)
def test_other_tensorrt_is_refused(version, says):
    told = str(faults(replace(GOOD, tensorrt=version))["tensorrt"])
    assert says in told
    assert "expected: 10.11 to 10.16 (pinned: 10.14.1.48); use the image nvcr.io/nvidia/tritonserver:26.04" in told


@pytest.mark.parametrize("version", ["1.2.0rc8", "1.2.0", "1.2.1"])
def test_tensorrt_llm_of_the_range_is_taken(version):
    assert "tensorrt_llm" not in faults(replace(GOOD, tensorrt_llm=version))


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "is not installed"),
        ("0.21.0", "is not supported; seen: 0.21.0; expected: 1.2 (pinned: 1.2.1)"),
        ("1.0.0", "is not supported; seen: 1.0.0"),
        ("1.1.0", "is not supported; seen: 1.1.0"),
        ("1.3.0", "builds no engines: from 1.3 on there is no trtllm-build"),
        ("1.3.0rc3", "builds no engines"),
        ("2.0.0", "builds no engines"),
    ],
)
def test_other_tensorrt_llm_is_refused_with_the_reason(version, says):
    assert says in str(faults(replace(GOOD, tensorrt_llm=version))["tensorrt_llm"])


def test_a_driver_of_cuda_12_is_too_old():
    told = str(faults(with_gpus(driver="575.57.08", cuda="12.9"))["cuda"])
    assert "seen: driver 575.57.08, CUDA 12.9; expected: CUDA 13 or newer" in told
    assert told.endswith("renew the driver (580 or newer)")


def test_a_driver_whose_cuda_is_unknown_is_a_fault():
    assert "CUDA unknown" in str(faults(with_gpus(cuda=None))["cuda"])


def test_without_a_gpu_nothing_is_said_about_its_driver():
    found = faults(replace(GOOD, gpus=GpuReport(fault="nvidia-smi lists no GPU")))
    assert list(found) == ["gpu"]
    assert "no GPU was found; seen: nvidia-smi lists no GPU" in str(found["gpu"])


def test_gpus_before_ampere_are_refused_by_name():
    told = [str(fault) for fault in check_versions(with_gpus(gpus=(replace(H100, name="T4", compute_capability=75),)))]
    assert len(told) == 1
    assert "too old for TensorRT-LLM and bfloat16; seen: T4 (7.5); expected: compute capability 8.0 or newer" in told[0]


def test_gpus_of_two_kinds_are_refused():
    (fault,) = check_versions(with_gpus(gpus=(H100, replace(H100, name="L40S", compute_capability=89))))
    assert fault.seen == "L40S (8.9), NVIDIA H100 80GB HBM3 (9.0)"
    assert "CUDA_VISIBLE_DEVICES" in fault.fix


def test_a_machine_is_looked_at_without_importing_anything(monkeypatch):
    monkeypatch.setattr(seen_module, "find_gpus", lambda: GOOD.gpus)
    monkeypatch.setattr(seen_module, "installed", {"tensorrt": "10.14.1.48"}.get)
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.68.0")
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    assert look() == Seen("10.14.1.48", None, "2.68.0", GOOD.gpus)
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.04")
    assert look().triton == "26.04"


def test_installed_versions_are_those_of_the_distributions():
    assert seen_module.installed("pytest") == pytest.__version__
    assert seen_module.installed("there-is-no-such-distribution") is None
