"""`nvlm-trt build`: plans, progress, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_a_dry_run_shows_stages_sizes_and_reasons_and_writes_nothing(
    nvlm_trt: Run, small_recipe: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("build", small_recipe, "--checkpoint", tiny_checkpoint, "--output", tmp_path / "engine", "--dry-run")
    shown = nvlm_trt(*words)
    assert shown.code == 0
    assert "vision-export    run" in shown.out
    assert "not built yet" in shown.out
    facts = nvlm_trt(*words, "--json").json
    assert facts["stages"][0] == {
        "name": "inspect",
        "action": "run",
        "reason": "not built yet",
        "disk_bytes": facts["stages"][0]["disk_bytes"],
        "memory_bytes": facts["stages"][0]["memory_bytes"],
        "lacks": None,
    }
    assert list(tmp_path.iterdir()) == []


def test_a_build_tells_progress_on_stderr_and_the_directory_on_stdout(
    nvlm_trt: Run, small_recipe: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("build", small_recipe, "--checkpoint", tiny_checkpoint, "--output", tmp_path / "engine")
    shown = nvlm_trt(*words, "--until", "vision-export")
    assert (shown.code, shown.out) == (0, f"{tmp_path / 'engine'}\n")
    assert "[2/2] vision-export: done in" in shown.err
    again = nvlm_trt(*words, "--until", "vision-export")
    assert "[2/2] vision-export: stands" in again.err
    facts = nvlm_trt(*words, "--from", "vision-export", "--until", "vision-export", "--json")
    assert facts.err == ""
    assert facts.json["stages"]["vision-export"]["state"] == "done"


REBUILD = """
import sys
from nvlm_trt.cli.main import main
code = main(["build", *sys.argv[1:]])
print([name for name in ("torch", "openvino", "onnx", "tritonclient", "rich") if name in sys.modules])
sys.exit(code)
"""


def test_a_build_of_what_stands_loads_nothing_that_computes(
    small_recipe: Path, tiny_checkpoint: Path, small_engine: Path
) -> None:
    words = [str(small_recipe), "--checkpoint", str(tiny_checkpoint), "--output", str(small_engine)]
    command = [sys.executable, "-c", REBUILD, *words, "--until", "decoder-compile"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stderr.count(": stands") == 5
    assert shown.stdout == f"{small_engine}\n[]\n"


def test_the_default_place_is_engines_and_the_name_of_the_recipe(
    nvlm_trt: Run, small_recipe: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = nvlm_trt("build", small_recipe, "--checkpoint", tiny_checkpoint, "--dry-run", "--json").json
    assert facts["engine_dir"] == str(tmp_path / "engines" / "small")


def test_an_unknown_field_of_a_recipe_is_refused_with_the_nearest_one(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("target: cpu\nmax_tile: 4\n")
    shown = nvlm_trt("build", recipe, "--output", tmp_path / "engine")
    assert shown.code == 2
    assert shown.err == "error: typo.yaml: unknown field max_tile, did you mean max_tiles?\n"
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("damage", ["config", "index", "shard", "weights"])
def test_a_bad_checkpoint_is_told_without_a_trace_and_leaves_nothing(
    nvlm_trt: Run, small_recipe: Path, tiny_checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in tiny_checkpoint.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    shard = bad / "model-00002-of-00009.safetensors"
    shard = shard if shard.exists() else sorted(bad.glob("*.safetensors"))[1]
    if damage == "config":
        (bad / "config.json").write_text("{")
    elif damage == "index":
        (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    elif damage == "shard":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-10])
    shown = nvlm_trt("build", small_recipe, "--checkpoint", bad, "--output", tmp_path / "engine")
    assert shown.code == 2
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert not (tmp_path / "engine").exists()


def test_gpu_recipes_show_their_plan_and_what_is_missing(nvlm_trt: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\ntp: 2\n")
    words = ("build", recipe, "--checkpoint", tiny_checkpoint, "--output", tmp_path / "engine")
    shown = nvlm_trt(*words, "--dry-run")
    assert shown.code == 0
    assert "cannot run here: it needs TensorRT" in shown.out
    shown = nvlm_trt(*words)
    assert shown.code == 2
    assert "stage vision-compile cannot run here: it needs TensorRT" in shown.err
