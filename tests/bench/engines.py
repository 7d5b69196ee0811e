"""Engine directories with other recipes, and tools on PATH that say what a test wants."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

NVIDIA_SMI = """
case "$*" in
    *memory.used*) cat {folder}/used ;;
    *name*) echo "NVIDIA H100 80GB HBM3, {mebibytes}, 9.0, 550.54.15, GPU-1" ;;
esac"""
"""An nvidia-smi of one GPU of so much memory, of which as much is in use as the file `used` says."""


def copied(engine: Path, folder: Path, **recipe: Any) -> Path:
    """The engine directory with another recipe; its files are links."""
    folder.mkdir()
    for path in engine.iterdir():
        if path.name != "recipe.yaml":
            (folder / path.name).symlink_to(path)
    fields = yaml.safe_load((engine / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**fields, **recipe}))
    return folder


def gpu_engine(engine: Path, folder: Path) -> Path:
    """An engine directory of the gpu target with the parts that are looked for."""
    gpu = copied(engine, folder / "gpu", target="gpu", decoder_precision="fp8")
    for part in ("vision", "decoder"):
        (gpu / part).unlink()
    (gpu / "decoder" / "engine").mkdir(parents=True)
    (gpu / "decoder" / "engine" / "rank0.engine").write_bytes(b"engine")
    (gpu / "vision").mkdir()
    (gpu / "vision" / "model.plan").write_bytes(b"plan")
    (gpu / "vision" / "vision.onnx").write_bytes(b"what the plan was compiled from")
    return gpu


def on_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script as a tool on PATH."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
