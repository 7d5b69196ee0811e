"""Stage `package`: the model repository of an engine directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.engine_files import VISION
from nvlm_trt.errors import BuildError, EngineError
from nvlm_trt.recipe import BuildRecipe

if TYPE_CHECKING:  # a build asks where the sources lie, and protobuf with tritonclient takes half a second to load
    from nvlm_trt.serving.config_parts import ModelConfig

VERSION = "1"
INSTALLED_SOURCES = Path(__file__).parent / "_triton_repo"
"""Where a wheel carries the folder triton_repo."""

CHECKOUT_SOURCES = Path(__file__).parents[2] / "triton_repo"


def write_repository(engine_dir: Path, out_dir: Path, recipe: BuildRecipe) -> None:
    """Write the model repository; the same engine directory and recipe give the same bytes.

    The repository's place is ``engine_dir/triton_repo``: its models find the engines from there. `out_dir` may be a
    temporary directory next to it, which is renamed when it is complete.

    Args:
        engine_dir: The engine directory with config.json, tokenizer, vision and decoder.
        out_dir: Directory to write into; made if it is missing.
        recipe: What the engines were built with.

    Raises:
        CheckpointError: the engine directory's config.json is missing or damaged.
        BuildError: the sources of the models are not installed.
    """
    from nvlm_trt.serving.config import configs, to_pbtxt
    from nvlm_trt.serving.spec import ServingSpec

    for name, config in configs(ServingSpec.of(engine_dir, recipe)).items():
        model_dir = out_dir / name
        version_dir = model_dir / VERSION
        version_dir.mkdir(parents=True, exist_ok=True)
        (model_dir / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
        if config.backend == "python":
            shutil.copyfile(model_source(name), version_dir / "model.py")
        elif config.backend == "tensorrt":
            _link_plan(version_dir, config)


def outdated_models(engine_dir: Path, repository: Path, recipe: BuildRecipe) -> list[str]:
    """Models whose configuration is not what this version would write, or missing: their names, sorted.

    Such a repository may load and answer, and fail on requests that take a tensor's new name or another way. What the
    text of a configuration looks like does not count.

    Args:
        engine_dir: The engine directory.
        repository: Its model repository.
        recipe: What the engines were built with.

    Raises:
        CheckpointError: the engine directory's config.json is missing or damaged.
    """
    from nvlm_trt.serving.config import configs
    from nvlm_trt.serving.spec import ServingSpec

    wanted = configs(ServingSpec.of(engine_dir, recipe))
    found = {folder.name for folder in repository.iterdir() if folder.is_dir()}  # tritonserver loads them all
    outdated = (name for name, config in wanted.items() if _written(repository / name / "config.pbtxt") != config)
    return sorted({*outdated, *(found - wanted.keys())})


def _written(file: Path) -> ModelConfig | None:
    """A model's configuration; None where this version cannot read it."""
    from nvlm_trt.serving.config import from_pbtxt

    try:
        return from_pbtxt(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, EngineError):
        return None


def model_source(name: str) -> Path:
    """The model.py of a Python model.

    Raises:
        BuildError: it is not installed.
    """
    for sources in (INSTALLED_SOURCES, CHECKOUT_SOURCES):
        if (sources / name / "model.py").is_file():
            return sources / name / "model.py"
    raise BuildError("the sources of the Triton models are not installed", seen=name, fix="install nvlm-trt again")


def _link_plan(version_dir: Path, config: ModelConfig) -> None:
    """Link the TensorRT plan from the engine directory; relative, so that the directory can be moved."""
    link = version_dir / config.default_model_filename
    link.unlink(missing_ok=True)
    os.symlink(Path("../../..", VISION, config.default_model_filename), link)
