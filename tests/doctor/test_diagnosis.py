"""What a machine can build and serve, and what keeps it from the rest."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvlm_trt.doctor import diagnosis, diagnosis_gpu
from nvlm_trt.doctor.diagnosis import findings, hindrances, usable
from nvlm_trt.doctor.diagnosis_gpu import gpu_findings
from nvlm_trt.doctor.finding import EVERYTHING
from nvlm_trt.environment.gpus import Gpu, GpuReport
from nvlm_trt.environment.processor import Processor
from nvlm_trt.environment.seen import Seen
from nvlm_trt.errors import EngineError
from nvlm_trt.host.environment import ImageTriton
from nvlm_trt.model import resize_kernel

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 90, "GPU-1")
IMAGE = Seen("10.14.1.48", "1.2.1", "26.04", GpuReport((H100,) * 2, "580.65.06", "13.0"))
LAPTOP = Seen(None, None, None, GpuReport(fault="nvidia-smi is not on PATH"))


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine look like another: what it has, its programs, its image, and libraries that it lacks."""

    def pretend(seen, *, programs=("trtllm-build", "mpirun"), image=True, absent=()):
        monkeypatch.setattr(diagnosis, "look", lambda: seen)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
        known = diagnosis.installed
        monkeypatch.setattr(diagnosis, "installed", lambda name: None if name in absent else known(name))
        if "openvino" in absent:
            monkeypatch.setattr(diagnosis.util, "find_spec", lambda name: None)

        def find(cls):
            if not image:
                raise EngineError("none", seen="no /opt/tritonserver", fix="serve inside the image")
            return SimpleNamespace(binary="/opt/tritonserver/bin/tritonserver")

        monkeypatch.setattr(ImageTriton, "find", classmethod(find))
        return findings()

    return pretend


def by_name(found):
    names = [finding.name for finding in found]
    assert len(names) == len(set(names))
    return {finding.name: finding for finding in found}


def reachable(found):
    return {goal for goal in EVERYTHING if not hindrances(found, goal)}


def test_a_laptop_has_the_cpu_target(machine):
    found = machine(LAPTOP, programs=(), image=False)
    assert reachable(found) == {"build_cpu", "serve_cpu"}
    assert usable(found)
    assert hindrances(found, "build_gpu") == ["gpus", "driver", "tensorrt", "tensorrt_llm", "trtllm-build"]
    assert hindrances(found, "serve_gpu") == ["gpus", "driver", "tensorrt", "tensorrt_llm", "tritonserver for gpu"]


def test_the_pinned_image_has_the_gpu_target_and_needs_no_openvino(machine):
    found = machine(IMAGE, absent=("openvino", "nvidia-pytriton"))
    assert reachable(found) == {"build_gpu", "serve_gpu"}
    assert usable(found)
    assert hindrances(found, "build_cpu") == ["openvino"]
    assert hindrances(found, "serve_cpu") == ["openvino", "tritonserver"]


def test_a_target_that_can_only_be_built_is_not_usable(machine):
    found = machine(IMAGE, image=False, absent=("openvino",))
    assert reachable(found) == {"build_gpu"}
    assert not usable(found)


def test_a_library_of_both_targets_keeps_from_both(machine):
    found = machine(IMAGE, absent=("torch",))
    assert reachable(found) == {"serve_cpu", "serve_gpu"}
    found = machine(IMAGE, absent=("tokenizers",))
    assert reachable(found) == set()


def test_each_gpu_has_a_row_with_what_it_lacks(machine):
    a100, b200 = replace(H100, name="A100", compute_capability=80), replace(H100, name="B200", compute_capability=100)
    rows = by_name(machine(replace(IMAGE, gpus=replace(IMAGE.gpus, gpus=(H100, a100, b200)))))
    assert rows["gpu 0"].seen == "NVIDIA H100 80GB HBM3, compute capability 9.0, 85.9 GB"
    assert [rows[f"gpu {index}"].remark for index in range(3)] == [
        "",
        "no fp8",
        "no int8_wo, int4_wo, int4_awq, int8_sq, no int8 KV cache",
    ]
    assert not rows["gpus"].ok
    assert "GPUs differ" in rows["gpus"].remark


def test_gpus_with_several_faults_have_one_row_for_them(machine):
    t4 = replace(H100, name="T4", compute_capability=75)
    row = by_name(machine(replace(IMAGE, gpus=replace(IMAGE.gpus, gpus=(H100, t4)))))["gpus"]
    assert (row.seen, row.ok) == ("2", False)
    assert "too old" in row.remark
    assert "GPUs differ" in row.remark


def test_driver_and_cuda_share_a_row_and_a_verdict(machine):
    assert by_name(machine(IMAGE))["driver"].seen == "580.65.06, CUDA 13.0"
    row = by_name(machine(replace(IMAGE, gpus=replace(IMAGE.gpus, driver="550.1", cuda="12.4"))))["driver"]
    assert (row.seen, row.ok) == ("550.1, CUDA 12.4", False)
    assert "expected: CUDA 13 or newer" in row.remark


def test_versions_that_are_refused_say_why(machine):
    rows = by_name(machine(replace(IMAGE, tensorrt_llm="1.3.0", tensorrt="10.9.0.1")))
    assert not rows["tensorrt_llm"].ok
    assert "no trtllm-build" in rows["tensorrt_llm"].remark
    assert not rows["tensorrt"].ok
    assert "10.11 to 10.16" in rows["tensorrt"].remark


def test_a_tensorrt_that_is_not_tensorrt_llms_own_is_remarked_not_refused(machine):
    row = by_name(machine(replace(IMAGE, tensorrt="10.15.1.29")))["tensorrt_llm"]
    assert (row.ok, row.remark) == (True, "TensorRT-LLM 1.2 comes with TensorRT 10.14")
    assert by_name(machine(IMAGE))["tensorrt_llm"].remark == ""


def test_mpirun_is_needed_where_there_are_several_gpus(machine):
    assert hindrances(machine(IMAGE, programs=("trtllm-build",)), "serve_gpu") == ["mpirun"]
    alone = replace(IMAGE, gpus=replace(IMAGE.gpus, gpus=(H100,)))
    assert hindrances(machine(alone, programs=("trtllm-build",)), "serve_gpu") == []


def test_trtllm_build_is_needed_to_build_alone(machine):
    assert reachable(machine(IMAGE, programs=("mpirun",))) >= {"serve_gpu"}
    assert hindrances(machine(IMAGE, programs=("mpirun",)), "build_gpu") == ["trtllm-build"]


@pytest.mark.parametrize(
    ("triton", "seen", "remark"),
    [("26.04", "26.04", ""), (None, "not inside one", ""), ("26.09", "26.09", "pinned are 26.04 to 26.07")],
)
def test_the_image_is_named_and_others_are_remarked(machine, triton, seen, remark):
    row = by_name(machine(replace(IMAGE, triton=triton)))["triton image"]
    assert (row.seen, row.ok, row.remark) == (seen, True, remark)


def test_memory_and_disk_that_do_not_suffice_keep_from_everything_that_needs_them(machine, monkeypatch):
    monkeypatch.setattr(diagnosis, "LEAST_MEMORY_BYTES", 1 << 60)
    assert "memory" in hindrances(machine(IMAGE), "serve_gpu")
    monkeypatch.setattr(diagnosis, "LEAST_DISK_BYTES", 1 << 60)
    found = machine(IMAGE)
    assert hindrances(found, "build_cpu") == hindrances(found, "build_gpu") == ["memory", "disk"]


def test_the_disk_is_that_of_the_place_that_is_named_though_it_is_not_there_yet(machine, monkeypatch, tmp_path):
    machine(LAPTOP)
    asked = []
    usage = shutil.disk_usage
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda place: asked.append(place) or usage(place))
    assert by_name(findings())["disk"].seen.endswith(" free here")
    assert by_name(findings(tmp_path / "engines" / "new"))["disk"].seen.endswith(f" free for {tmp_path}/engines/new")
    assert asked == [Path(), tmp_path]


def test_numa_nodes_are_counted(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis, "NUMA_FOLDER", tmp_path)
    assert by_name(machine(LAPTOP))["numa"].seen == "unknown"
    for name in ("node0", "node1", "possible"):
        (tmp_path / name).mkdir()
    assert by_name(machine(LAPTOP))["numa"].seen == "2 nodes"


def test_a_checkpoint_is_looked_at_where_one_is_given(machine, tiny_checkpoint, tmp_path):
    assert "checkpoint" not in by_name(machine(LAPTOP))
    row = by_name(findings(checkpoint=tiny_checkpoint))["checkpoint"]
    assert row.ok
    assert "3 decoder layers" in row.seen
    row = by_name(findings(checkpoint=tmp_path / "nothing"))["checkpoint"]
    assert not row.ok
    assert set(row.needed_for) == {"build_cpu", "build_gpu"}
    assert row.seen == str(tmp_path / "nothing")


def test_a_checkpoint_cannot_be_looked_at_without_the_library_that_reads_it(machine, tiny_checkpoint, monkeypatch):
    machine(LAPTOP)
    monkeypatch.setitem(sys.modules, "nvlm_trt.model.checkpoint", None)
    row = by_name(findings(checkpoint=tiny_checkpoint))["checkpoint"]
    assert (row.ok, row.seen) == (False, "not looked at")


def test_findings_for_gpus_alone_import_no_library_of_theirs(monkeypatch):
    for name in ("tensorrt", "tensorrt_llm"):
        monkeypatch.setitem(sys.modules, name, None)
    assert diagnosis_gpu.BUILDER in by_name(gpu_findings(IMAGE))


def test_what_resizes_images_is_told_and_stops_nothing(machine, monkeypatch):
    monkeypatch.setattr(resize_kernel, "kernel_status", lambda: resize_kernel.KernelStatus(None, "no AVX2"))
    found = machine(LAPTOP)
    row = by_name(found)["resizing"]
    assert (row.seen, row.remark, row.ok) == ("Pillow", "no AVX2", True)
    assert reachable(found) == {"build_cpu", "serve_cpu"}


def test_types_that_the_processor_has_no_instructions_for_are_told(machine, monkeypatch):
    monkeypatch.setattr(diagnosis, "processor", lambda: Processor("Lake", frozenset({"int8"})))
    row = by_name(machine(LAPTOP))["processor"]
    expected = ("Lake, without instructions for bf16", "bf16 engines compute in fp32", True)
    assert (row.seen, row.remark, row.ok) == expected
