"""scripts/build_engines.sh: what it installs, builds, serves and asks; all of it is only noted down here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU, GPU = "nvlm-d-mini-cpu", "nvlm-d-72b-fp8-tp4"
NOTE = """#!/usr/bin/env python3
import json, signal, sys
with open("calls.jsonl", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1] == "build":
    print("engines/mine")
elif sys.argv[1] == "serve":
    print(json.dumps({"ready": True, "grpc": "localhost:7"}), flush=True)
    signal.pause()
"""

Run = Callable[..., list[list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script in a folder of its own, from elsewhere; the extras that it installs, and what it calls."""
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "build_engines.sh", tmp_path / "scripts")
    shutil.copytree(ROOT / "build" / "recipes", tmp_path / "build" / "recipes")
    (tmp_path / "scripts" / "venv.sh").write_text("""echo "[\\"$1\\"]" >calls.jsonl; export PATH="$PWD/bin:$PATH"\n""")
    (tmp_path / "bin" / "nvlm-trt").write_text(NOTE)
    (tmp_path / "bin" / "nvlm-trt").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    def calls(*words: str) -> list[list[str]]:
        subprocess.run([tmp_path / "scripts" / "build_engines.sh", *words], cwd="/", env=os.environ, check=True)
        return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]

    return calls


@pytest.mark.parametrize("words", [(), (CPU,), (f"build/recipes/{CPU}.yaml", "--from=verify", "--quiet")])
def test_a_whole_build_for_this_machine_is_served_and_asked(words: tuple[str, ...], run: Run) -> None:
    extras, build, serve, chat = run(*words)
    assert extras == ["cpu"]
    assert build == ["build", f"build/recipes/{CPU}.yaml", *words[1:]]
    assert serve[:2] == ["serve", "engines/mine"]
    assert chat[:3] == ["chat", "--url", "localhost:7"]


@pytest.mark.parametrize("recipe", [GPU, f"build/recipes/{GPU}.yaml"])
@pytest.mark.parametrize(("python", "extras"), [("true", "image"), ("false", "cpu")])
def test_for_the_gpu_target_libraries_are_the_image_s_own_where_it_is_and_nothing_is_served(
    recipe: str, python: str, extras: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", python)  # asked whether it can import TensorRT-LLM
    assert run(recipe, "--checkpoint", "/weights") == [
        [extras],
        ["build", f"build/recipes/{GPU}.yaml", "--checkpoint", "/weights"],
    ]


@pytest.mark.parametrize(
    "words", [("--until", "inspect"), ("--until=inspect",), ("--dry-run",), ("--quiet", "--json"), ("--help",)]
)
def test_nothing_is_served_where_no_engine_is_to_be_asked(words: tuple[str, ...], run: Run) -> None:
    assert run(CPU, *words) == [["cpu"], ["build", f"build/recipes/{CPU}.yaml", *words]]
