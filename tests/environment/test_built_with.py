"""Engines are compared with the machine before they are loaded: which file, built by what, met by what."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nvlm_trt.environment.built_with import BUILT_WITH, BuiltWith, compare, read_records, require_match
from nvlm_trt.environment.gpus import Gpu, GpuReport
from nvlm_trt.environment.seen import Seen
from nvlm_trt.errors import EngineError

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 90, "GPU-1")
H200 = Gpu("NVIDIA H200", 141 << 30, 90, "GPU-2")
L40S = Gpu("NVIDIA L40S", 45 << 30, 89, "GPU-3")
A100 = Gpu("NVIDIA A100", 80 << 30, 80, "GPU-4")
T4 = Gpu("Tesla T4", 16 << 30, 75, "GPU-5")
SEEN = Seen("10.14.1.48", "1.2.1", "26.04", GpuReport((H100,) * 4, "580.65.06", "13.0"))
VISION = BuiltWith.of(SEEN, tensorrt_llm=False)
DECODER = BuiltWith.of(SEEN, tensorrt_llm=True)
ENGINES = {"vision/model.plan": VISION, "decoder/engine/rank0.engine": DECODER}


def with_gpus(*gpus):
    return replace(SEEN, gpus=replace(SEEN.gpus, gpus=gpus))


def test_the_record_holds_what_engines_are_tied_to_and_survives_json():
    assert DECODER.to_dict() == {
        "tensorrt": "10.14.1.48",
        "tensorrt_llm": "1.2.1",
        "driver": "580.65.06",
        "cuda": "13.0",
        "gpu": "NVIDIA H100 80GB HBM3",
        "compute_capability": 90,
        "gpu_count": 4,
        "hardware_compatibility": "none",
    }
    assert VISION.tensorrt_llm is None
    for record in (VISION, DECODER):
        assert BuiltWith.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize("raw", [{}, {**DECODER.to_dict(), "colour": "green"}])
def test_a_record_of_another_version_is_refused(raw):
    with pytest.raises(EngineError, match="of another version"):
        BuiltWith.from_dict(raw)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (replace(SEEN, gpus=GpuReport(fault="nvidia-smi lists no GPU")), "nvidia-smi lists no GPU"),
        (replace(SEEN, tensorrt=None), "no TensorRT"),
    ],
)
def test_nothing_is_recorded_on_a_machine_that_builds_nothing(seen, says):
    with pytest.raises(EngineError, match=says):
        BuiltWith.of(seen, tensorrt_llm=False)


def test_the_machine_that_built_them_can_load_them():
    assert compare(ENGINES, SEEN) == []
    require_match(ENGINES, SEEN)


def test_another_tensorrt_is_told_for_each_file():
    assert compare(ENGINES, replace(SEEN, tensorrt="10.14.1.50")) == [
        "vision/model.plan was built by TensorRT 10.14.1.48 and is met by 10.14.1.50",
        "decoder/engine/rank0.engine was built by TensorRT 10.14.1.48 and is met by 10.14.1.50",
    ]
    assert compare(ENGINES, replace(SEEN, tensorrt=None))[0].endswith("is met by none")


def test_the_suffix_of_a_python_package_is_no_difference():
    assert compare(ENGINES, replace(SEEN, tensorrt="10.14.1.48.post1")) == []


def test_another_tensorrt_llm_concerns_the_decoder_alone():
    assert compare(ENGINES, replace(SEEN, tensorrt_llm="1.2.0")) == [
        "decoder/engine/rank0.engine was built by TensorRT-LLM 1.2.1 and is met by 1.2.0"
    ]
    assert compare({"vision/model.plan": VISION}, replace(SEEN, tensorrt_llm=None)) == []


def test_gpus_of_another_capability_are_told_by_name():
    assert compare({"vision/model.plan": VISION}, with_gpus(H100, L40S, L40S)) == [
        "vision/model.plan was built for NVIDIA H100 80GB HBM3 (9.0) and is met by NVIDIA L40S (8.9)"
    ]


def test_a_machine_without_gpu_loads_nothing():
    found = compare({"vision/model.plan": VISION}, replace(SEEN, gpus=GpuReport(fault="nvidia-smi lists no GPU")))
    assert found == [
        "vision/model.plan was built for NVIDIA H100 80GB HBM3 (9.0), but no GPU was found (nvidia-smi lists no GPU)"
    ]


def test_fewer_gpus_and_another_driver_are_no_difference():
    assert compare(ENGINES, replace(SEEN, gpus=GpuReport((H100,), "590.1", "13.1"))) == []


@pytest.mark.parametrize(
    ("compatibility", "gpu", "fits"),
    [
        ("none", H200, True),
        ("same_compute_capability", H200, True),
        ("same_compute_capability", L40S, False),
        ("ampere_plus", L40S, True),
        ("ampere_plus", A100, True),
        ("ampere_plus", T4, False),
    ],
)
def test_an_engine_runs_as_far_as_it_was_built_to(compatibility, gpu, fits):
    built = BuiltWith.of(SEEN, tensorrt_llm=False, hardware_compatibility=compatibility)
    assert (compare({"model.plan": built}, with_gpus(gpu)) == []) is fits


def test_what_does_not_match_is_refused_with_all_reasons_and_what_to_do():
    with pytest.raises(EngineError) as refused:
        require_match(ENGINES, replace(with_gpus(L40S), tensorrt="10.13.3.9"))
    told = str(refused.value)
    assert told.count("vision/model.plan") == told.count("rank0.engine") == 2
    assert "run nvlm-trt build again here" in told


def test_records_are_found_beside_the_engines_of_a_directory(tmp_path):
    assert read_records(tmp_path) == {}
    (tmp_path / "decoder" / "engine").mkdir(parents=True)
    (tmp_path / "decoder" / "engine" / BUILT_WITH).write_text(json.dumps(DECODER.to_dict()))
    assert read_records(tmp_path) == {"decoder/engine": DECODER}
    (tmp_path / "decoder" / "engine" / BUILT_WITH).write_text("{")
    with pytest.raises(EngineError, match="record of an engine cannot be read"):
        read_records(tmp_path)
