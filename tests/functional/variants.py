"""Engine directories that differ in what the recipe says of the cpu target's engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from nvlm_trt.recipe import load_recipe
from nvlm_trt.serving.package import write_repository


def engine_with(engine_dir: Path, out: Path, **fields: object) -> Path:
    """The engine directory with other fields of the recipe's `cpu_engine`, packaged."""
    shutil.copytree(engine_dir, out, ignore=shutil.ignore_patterns("triton_repo"))
    raw = yaml.safe_load((out / "recipe.yaml").read_text())
    raw["cpu_engine"] |= fields
    (out / "recipe.yaml").write_text(yaml.safe_dump(raw))
    write_repository(out, out / "triton_repo", load_recipe(out / "recipe.yaml"))
    return out
