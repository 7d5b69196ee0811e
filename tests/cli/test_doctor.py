"""`nvlm-trt doctor`: the table, the verdicts, the exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.doctor import diagnosis
from nvlm_trt.environment.gpus import Gpu, GpuReport
from nvlm_trt.environment.seen import Seen
from nvlm_trt.pipeline.manifest import Manifest, StageRecord
from nvlm_trt.recipe import load_recipe
from nvlm_trt.serving.package import write_repository

Run = Callable[..., Any]

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 90, "GPU-1")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' machine is taken for one without a GPU, whatever it has."""
    monkeypatch.setattr(diagnosis, "look", lambda: Seen(None, None, None, GpuReport(fault="nvidia-smi lists no GPU")))


def rows(shown: str) -> dict[str, list[str]]:
    """Cells of the table's rows by their first one."""
    table = shown.split("\n\n")[0].splitlines()
    return {cells[0]: cells for line in table if (cells := [cell.strip() for cell in line.split("  ") if cell.strip()])}


def test_this_machine_has_the_cpu_target_and_what_the_gpu_target_lacks_is_no_failure(nvlm_trt: Run) -> None:
    shown = nvlm_trt("doctor")
    assert shown.code == 0
    assert "build the cpu target: yes" in shown.out
    assert "serve the cpu target: yes" in shown.out
    assert "build the gpu target: no: gpus, driver, tensorrt, tensorrt_llm, trtllm-build" in shown.out
    table = rows(shown.out)
    assert table["openvino"][2] == "ok"
    assert table["gpus"][1:3] == ["nvidia-smi lists no GPU", "-"]
    assert "no" not in [cells[2] for cells in table.values() if len(cells) > 2]


def test_the_verdicts_are_told_to_programs_with_their_reasons(nvlm_trt: Run) -> None:
    facts = nvlm_trt("doctor", "--json").json
    assert facts["build_cpu"] is facts["serve_cpu"] is True
    assert facts["build_gpu"] is facts["serve_gpu"] is False
    assert facts["hindered_by"]["serve_cpu"] == []
    assert "tensorrt_llm" in facts["hindered_by"]["build_gpu"]
    (numpy,) = [finding for finding in facts["findings"] if finding["name"] == "numpy"]
    assert numpy["needed_for"] == ["build_cpu", "serve_cpu", "build_gpu", "serve_gpu"]
    assert set(numpy) == {"name", "seen", "ok", "needed_for", "remark"}


def test_where_nothing_works_failures_are_failures(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.1.0"}
    known = diagnosis.installed
    monkeypatch.setattr(diagnosis, "installed", lambda name: versions.get(name) or known(name))
    shown = nvlm_trt("doctor")
    assert shown.code == 1
    assert "corrupts tensors with NumPy 2" in shown.out
    assert "build the cpu target: no: numpy\n" in shown.out
    table = rows(shown.out)
    assert table["numpy"][2] == table["gpus"][2] == "no"
    assert table["mpirun"][2] == "-"  # nobody needs it where there is no GPU
    monkeypatch.setattr(diagnosis, "LEAST_MEMORY_BYTES", 1 << 60)
    assert "are needed" in nvlm_trt("doctor").out


def test_a_machine_of_the_gpu_target_is_judged_by_that(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen("10.14.1.48", "1.2.1", "26.04", GpuReport((H100,), "580.65.06", "13.0"))
    monkeypatch.setattr(diagnosis, "look", lambda: seen)
    table = rows(nvlm_trt("doctor").out)
    assert table["gpu 0"][1:3] == ["NVIDIA H100 80GB HBM3, compute capability 9.0, 85.9 GB", "ok"]
    assert table["tensorrt_llm"][1:3] == ["1.2.1", "ok"]
    assert table["driver"][1:3] == ["580.65.06, CUDA 13.0", "ok"]


def test_a_checkpoint_that_cannot_be_built_from_is_told(nvlm_trt: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = nvlm_trt("doctor", "--checkpoint", tiny_checkpoint)
    assert shown.code == 0
    assert rows(shown.out)["checkpoint"][2] == "ok"
    shown = nvlm_trt("doctor", "--checkpoint", tmp_path)  # nothing lies there
    assert shown.code == 1
    assert "build the cpu target: no: checkpoint\n" in shown.out
    assert "serve the cpu target: yes" in shown.out


def test_the_disk_for_engines_may_be_another_one(nvlm_trt: Run, tmp_path: Path) -> None:
    assert rows(nvlm_trt("doctor").out)["disk"][1].endswith(" free here")
    shown = nvlm_trt("doctor", "--output", tmp_path / "new")
    assert rows(shown.out)["disk"][1].endswith(f" free for {tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--checkpoint", "--engine"])
def test_a_directory_that_is_not_there_is_the_users_mistake(nvlm_trt: Run, option: str, tmp_path: Path) -> None:
    shown = nvlm_trt("doctor", option, tmp_path / "nope")
    assert (shown.code, shown.out) == (2, "")
    assert f"{option} is no directory; seen: {tmp_path / 'nope'}" in shown.err


def test_an_engine_that_another_version_packaged_or_that_is_half_built_is_a_finding(
    nvlm_trt: Run, small_recipe: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "triton_repo").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(small_recipe.read_text())
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    shown = nvlm_trt("doctor", "--engine", tmp_path)
    assert shown.code == 1
    assert "packaged by another version" in shown.out
    assert "serve the cpu target: no: engine" in shown.out
    assert "build the cpu target: yes" in shown.out
    write_repository(tmp_path, tmp_path / "triton_repo", load_recipe(recipe))
    shown = nvlm_trt("doctor", "--engine", tmp_path)
    assert shown.code == 0
    assert rows(shown.out)["engine"][1:3] == ["recipe, target cpu", "ok"]
    failed = StageRecord("failed", "", {}, "nvlm-trt build", "")
    Manifest(stages={"verify": failed, "package": dataclasses.replace(failed, state="done")}).save(tmp_path)
    shown = nvlm_trt("doctor", "--engine", tmp_path)
    assert (shown.code, "not complete: stage verify failed" in shown.out) == (1, True)


def test_what_is_no_engine_is_a_finding(nvlm_trt: Run, tmp_path: Path) -> None:
    shown = nvlm_trt("doctor", "--engine", tmp_path)
    assert shown.code == 1
    assert "there is no packaged engine" in shown.out
