"""kill -9 at any moment, run again: the build resumes, and the result is the one of an undisturbed build."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGES = (
    "synth",
    "inspect",
    "vision-export",
    "vision-compile",
    "decoder-convert",
    "decoder-compile",
    "verify",
    "package",
)
MOMENTS = ("early", "written", "moved", "unnoted")
RECIPE = """
target: cpu
checkpoint: synth:tiny
vision_precision: fp32
decoder_precision: int8_wo
max_batch_size: 2
max_images: 1
max_input_len: 1024
max_output_len: 64
verify_prompts: 1
verify_tokens: 4
"""

pytestmark = pytest.mark.timeout(900)


def outputs_of(engine: Path) -> dict[str, dict[str, str]]:
    """Digest of every output of every stage, as the manifest has it."""
    stages = json.loads((engine / "manifest.json").read_text())["stages"]
    assert {record["state"] for record in stages.values()} == {"done"}
    return {name: {file["path"]: file["sha256"] for file in record["outputs"]} for name, record in stages.items()}


def files_of(engine: Path) -> dict[str, bytes]:
    """Content of every visible file but the manifest, which holds times."""
    paths = (path for path in sorted(engine.rglob("*")) if path.is_file())
    names = {path.relative_to(engine).as_posix(): path for path in paths}
    return {
        name: path.read_bytes() for name, path in names.items() if not name.startswith(".") and name != "manifest.json"
    }


def run_builds(recipe: Path, engine: Path, kills: list[str]) -> list[str]:
    script = Path(__file__).with_name("killed_builds.py")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe), str(engine), *kills], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "killed.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = tmp_path_factory.mktemp("undisturbed") / "engine"
    assert run_builds(recipe, engine, []) == ["all finished 0"]
    return engine


def test_a_build_killed_at_every_moment_of_every_stage_ends_as_an_undisturbed_one(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    kills = [f"{stage}:{moment}" for stage in STAGES for moment in MOMENTS]
    lines = run_builds(recipe, engine, kills)
    assert lines == [*(f"{kill.replace(':', ' ')} -9" for kill in kills), "all finished 0"]
    assert outputs_of(engine) == outputs_of(undisturbed)
    assert files_of(engine) == files_of(undisturbed)
    assert not list(engine.glob(".*.partial"))
    assert not list(engine.glob(".*.tmp"))


def test_a_killed_rebuild_never_passes_for_the_finished_one(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    run_builds(recipe, engine, [])
    (engine / "vision" / "vision.onnx").write_bytes(b"damaged")
    kills = ["vision-export:early", "vision-export:moved"]
    assert run_builds(recipe, engine, kills)[:2] == ["vision-export early -9", "vision-export moved -9"]
    assert files_of(engine) == files_of(undisturbed)


def test_a_command_line_killed_at_random_moments_resumes(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "build", str(recipe), "--output", str(engine), "--quiet"]
    chance = random.Random(20)
    for _ in range(3):
        with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as build:
            while not (engine / "manifest.json").exists() and build.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 1.0))
            os.killpg(build.pid, signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert files_of(engine) == files_of(undisturbed)
