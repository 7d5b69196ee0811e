"""scripts/bench.sh: what it builds and how it calls `nvlm-trt bench`; both are only noted down here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.host.engine import ServedEngine
from nvlm_trt.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = "build/recipes/nvlm-d-mini-cpu.yaml"
SMALL_RECIPE = "build/recipes/nvlm-small-cpu.yaml"
TASK = "nvlm_trt/miniature/gate/task.jsonl"
PRECISIONS = {
    "fp32": ("fp32", "fp32"),
    "bf16": ("bf16", "bf16"),
    "int8_wo": ("bf16", "int8_wo"),
    "int8": ("int8", "int8"),
    "int4_wo": ("bf16", "int4_wo"),
}
"""Of vision and decoder."""

ENGINES = [f"engines/bench/nvlm-d-mini-{precision}" for precision in PRECISIONS]
NOTE = """#!/usr/bin/env python3
import json, sys
with open("calls.jsonl", "a") as calls:
    print(json.dumps([{name!r}, *sys.argv[1:]]), file=calls)
"""

Run = Callable[..., list[list[str]]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a folder of its own, where `nvlm-trt` and `python` only note how they are called."""
    for folder in ("scripts", "bin", "build/recipes"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "bench.sh", tmp_path / "scripts")
    for recipe in (RECIPE, SMALL_RECIPE):
        shutil.copy(ROOT / recipe, tmp_path / recipe)
    (tmp_path / "scripts" / "venv.sh").write_text('export PATH="$PWD/bin:$PATH"\n')
    for name in ("nvlm-trt", "python"):
        (tmp_path / "bin" / name).write_text(NOTE.format(name=name))
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def run(checkout: Path) -> Run:
    """Runs the script from elsewhere; what was called."""

    def calls(*words: str) -> list[list[str]]:
        subprocess.run([checkout / "scripts" / "bench.sh", *words], cwd="/", env=os.environ, check=True)
        return [json.loads(line) for line in (checkout / "calls.jsonl").read_text().splitlines()]

    return calls


def test_five_precisions_are_built_without_a_gate_and_measured_together(run: Run, checkout: Path) -> None:
    *builds, bench = run("--quiet")
    assert builds == [
        ["nvlm-trt", "build", f"{engine}.yaml", "--output", engine, "--until", "decoder-compile"] for engine in ENGINES
    ]
    found = [load_recipe(checkout / f"{engine}.yaml") for engine in ENGINES]
    assert [(recipe.vision_precision, recipe.decoder_precision) for recipe in found] == [*PRECISIONS.values()]
    assert bench[: 2 + len(ENGINES)] == ["nvlm-trt", "bench", *ENGINES]
    assert bench[bench.index("--baseline") + 1] == "bf16,fp32"
    assert bench[-1] == "--quiet"


def test_the_small_model_is_made_once_and_measured_in_two_precisions(run: Run, checkout: Path) -> None:
    (checkout / TASK).parent.mkdir(parents=True)
    (checkout / TASK).write_text("{}\n")
    synth, *builds, bench = run("--small", "--quiet")
    checkpoint, engines = "engines/bench/nvlm-small", [f"engines/bench/nvlm-small-{each}" for each in ("bf16", "int8")]
    assert synth == ["nvlm-trt", "synth", checkpoint, "--size", "small"]
    assert builds == [
        [
            *("nvlm-trt", "build", f"{engine}.yaml", "--output", engine, "--until", "decoder-compile"),
            *("--checkpoint", checkpoint),
        ]
        for engine in engines
    ]
    found = [load_recipe(checkout / f"{engine}.yaml") for engine in engines]
    assert [(each.vision_precision, each.decoder_precision) for each in found] == [("bf16", "bf16"), ("int8", "int8")]
    assert [each.max_batch_size for each in found] == [32, 32]
    assert bench[:4] == ["nvlm-trt", "bench", *engines]
    assert "--small" not in bench
    assert "--task" not in bench  # answers of random weights
    assert "stall" in bench[bench.index("--scenario") + 1]
    (checkout / checkpoint).mkdir()
    (checkout / "calls.jsonl").unlink()
    assert [call[1] for call in run("--small")] == ["build", "build", "bench"]


def test_a_dry_run_plans_what_it_can_and_makes_nothing(run: Run, checkout: Path) -> None:
    builds = run("--dry-run", "--transport", "grpc")
    assert [(call[1], call[-1]) for call in builds] == [("build", "--dry-run")] * len(ENGINES)
    for engine in ENGINES:
        (checkout / engine).mkdir()
    (checkout / "calls.jsonl").unlink()
    *builds, bench = run("--dry-run", "--transport", "grpc")
    assert [(call[1], call[-1]) for call in builds] == [("build", "--dry-run")] * len(ENGINES)
    assert (bench[1], bench[-3]) == ("bench", "--dry-run")
    (checkout / "calls.jsonl").write_text("")
    assert run("--small", "--dry-run") == []


def test_some_precisions_alone_are_built_and_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECISIONS", "int8")
    synth, build, bench = run("--small")
    assert (synth[1], build[2]) == ("synth", "engines/bench/nvlm-small-int8.yaml")
    assert bench[2:4] == ["engines/bench/nvlm-small-int8", "--baseline"]


@pytest.mark.parametrize(
    ("options", "precisions", "served"),
    [
        ((), "int8", "nvlm-d-mini-int8"),
        ((), "fp32 int4_wo", "nvlm-d-mini-fp32"),
        ((), "fp32 int8_wo", "nvlm-d-mini-int8_wo"),
        (("--small",), "bf16", "nvlm-small-bf16"),
        (("--small",), "bf16 int8", "nvlm-small-int8"),
    ],
)
def test_the_engine_that_is_served_is_one_that_was_built(
    options: tuple[str, ...], precisions: str, served: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECISIONS", precisions)
    bench = run(*options)[-1]
    assert bench[bench.index("--served") + 1] == served
    assert f"engines/bench/{served}" in bench


def test_the_shipped_task_is_put_to_everybody_where_it_is_there(run: Run, checkout: Path) -> None:
    assert "--task" not in run()[-1]
    (checkout / TASK).parent.mkdir(parents=True)
    (checkout / TASK).write_text("{}\n")
    bench = run()[-1]
    assert bench[bench.index("--task") + 1] == TASK


def test_options_of_the_users_come_after_the_defaults_so_that_they_hold(run: Run, checkout: Path) -> None:
    (checkout / TASK).parent.mkdir(parents=True)
    (checkout / TASK).write_text("{}\n")
    asked = ["--task", "mine.jsonl", "--baseline", "none", "--rounds", "9"]
    bench = run(*asked)[-1]
    assert bench[-len(asked) :] == asked
    assert [bench.count(option) for option in asked[::2]] == [2, 2, 2]


@pytest.mark.parametrize("asked", ["local,grpc,http", "grpc", "http"])
def test_a_server_gets_a_model_repository_before_it_is_measured(asked: str, run: Run) -> None:
    *_, packaged, bench = run("--transport", asked)
    assert packaged == ["python", "-", *ENGINES]
    assert bench[bench.index("--served") + 1] == "nvlm-d-mini-int8_wo"


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--compare", "a.json", "b.json"),
        ("--json", "--compare", "a.json", "b.json"),
        ("--url", "localhost:8001"),
        ("--http-url=localhost:8000",),
        ("engines/mine", "--rounds", "1"),
    ],
)
def test_nothing_is_built_where_no_engine_is_wanted(words: tuple[str, ...], run: Run) -> None:
    assert run(*words) == [["nvlm-trt", "bench", *words]]


def test_what_the_script_packages_is_what_a_server_looks_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = (ROOT / "scripts" / "bench.sh").read_text()
    program = script.split("<<'PYTHON'\n")[1].split("PYTHON\n")[0]
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: tiny\ntarget: cpu\n")
    subprocess.run([sys.executable, "-", tmp_path], input=program, text=True, check=True)
    assert ServedEngine.open(tmp_path).recipe.name == "tiny"
    assert (tmp_path / "triton_repo" / "nvlm" / "config.pbtxt").is_file()
